// gemm_sm90.cu: y = x W^T for 2 to 128 tokens and more on Hopper, W in strips (strips.cuh), every format.
//
// Must move, 8192 x 28672, int4-g128:   weights 122.9 MB, once, whatever the number of tokens up to 128
// Must do:                              2 m n k: 7.5 GFLOP for 16 tokens, 60 for 128
// Floor of an H100:                     40 us of memory; 128 tokens: 61 us of arithmetic at 989 TFLOP/s
//
// gemm.cu is the rung before. There all threads compute addresses and wait together, and mma.sync is slower than the
// memory for 128 tokens. Here:
//
// - wgmma. A warpgroup has 64 rows, its warps a strip each; the weights become float16 in the very registers that the
//   instruction reads. While it runs, the warps decode the next codes; another warpgroup fills the remaining gaps.
// - One thread of an extra warp does all the fetching: a bulk copy takes a record, another the activations, and barriers
//   that count bytes take the place of every thread's waiting. No thread computes an address for 16 bytes.
// - `prepare_sm90` lays out the activations once, as shared memory is to hold them.
// - Scales in float32 once for RUN columns, k split over blocks, overlap of launches: as in gemm.cu.
//
// compile with: -DX=f16 -DY=float -DIS_BF16=0 -DTOKENS=128 -DWGS=2 -DSTAGES=2 -DBITS=4 -DSUB=128 -DHEADER=6 -DVALUE=V_ZERO -DZEROS=4 -DSCALE=S_F16
// compile with: -DX=bf16 -DY=bf16 -DY_HALF=1 -DIS_BF16=1 -DTOKENS=64 -DWGS=3 -DSTAGES=3 -DBITS=5 -DSUB=32 -DHEADER=16 -DVALUE=V_OFFSET -DOFFSET=0 -DSCALE=S_Q4_K
// compile with: -DX=f16 -DY=float -DIS_BF16=0 -DTOKENS=16 -DWGS=4 -DSTAGES=4 -DBITS=3 -DSUB=16 -DHEADER=14 -DVALUE=V_OFFSET -DOFFSET=4 -DSCALE=S_Q3_K
// compile with: -DX=f16 -DY=float -DIS_BF16=0 -DTOKENS=8 -DWGS=4 -DSTAGES=4 -DBITS=4 -DSUB=64 -DHEADER=16 -DVALUE=V_LEVELS -DSCALE=S_F32
#include "strips.cuh"
#include "tokens.cuh"
#include "wgmma.cuh"

#define STRIPS (4 * WGS)
#define X_BYTES (512 * TOKENS)
#define SUM_BYTES (HAS_MIN ? 4 * SUBS * TOKENS : 0)
#define STAGE ((X_BYTES + STRIPS * RECORD + SUM_BYTES + 1023) / 1024 * 1024)
#define CHUNK (RUN >= 64 ? 4 : RUN / 16)  // steps that are decoded, and handed over, together

// x [m, k] as float16 in the order that wgmma.cuh describes: for every TOKENS tokens and 256 columns, four matrices of
// 64 columns; zeros behind m and k. `back` [m] undoes the power of two that bfloat16 needs. sums of sub-blocks
// [m / TOKENS, k / SUB, TOKENS]. Grid: tokens (a multiple of TOKENS), records / 8; 256 threads, a warp a record.
extern "C" __global__ void prepare_sm90(const X* x, f16* xs, float* back, float* sums, int m, int k) {
    int token = blockIdx.x, records = (k + 255) / 256, lane = threadIdx.x & 31;
    const X* from = x + (long long)token * k;
    float factor = begin_token(from, k, token < m, back + token);
    int record = 8 * blockIdx.y + threadIdx.x / 32, column = 256 * record + 8 * lane;
    if (record >= records) return;
    __align__(16) unsigned short v[8];
    float sum = 0;
    if (token < m && column + 8 <= k && ((unsigned long long)(from + column) & 15) == 0) {
        *(uint4*)v = *(const uint4*)(from + column);
    } else {
        for (int i = 0; i < 8; i++) v[i] = token < m && column + i < k ? from[column + i] : 0;
    }
    for (int i = 0; i < 8; i++) {
        if (IS_BF16) v[i] = to_f16(from_bf16(v[i]) * factor);
        if (HAS_MIN) sum += from_f16(v[i]);
    }
    int row = token % TOKENS, piece = (lane & 7) ^ (row & 7);
    long long block = (long long)(token / TOKENS) * records + record;
    *(uint4*)(xs + block * (X_BYTES / 2) + lane / 8 * (64 * TOKENS) + 64 * row + 8 * piece) = *(uint4*)v;
    if (HAS_MIN) {
        for (int step = 1; step < SUB / 8; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
        if (lane % (SUB / 8) == 0) sums[(block * SUBS + lane / (SUB / 8)) * TOKENS + row] = sum;
    }
}

// Grid: blocks of 64 WGS rows, parts of k, blocks of tokens. Workspace and counters as in gemm.cu.
extern "C" __global__ void __launch_bounds__(128 * WGS + 32, 1)
    gemm_sm90(const uint4* w, const f16* xs, const float* sums, const float* back, const unsigned* levels, Y* y,
              float* workspace, int* counters, int m, int n, int k) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ uint4 memory[];
    __shared__ unsigned long long barriers[2 * STAGES];
    __shared__ unsigned table[16];
    __shared__ int arrived;
    unsigned base = ((unsigned)__cvta_generic_to_shared(memory) + 1023) & ~1023u;
    const unsigned char* stages = (const unsigned char*)memory + (base - (unsigned)__cvta_generic_to_shared(memory));
    unsigned full = (unsigned)__cvta_generic_to_shared(barriers), empty = full + 8 * STAGES;
    int warp = threadIdx.x / 32, lane = threadIdx.x & 31, r = lane >> 2, t = lane & 3;
    int records = (k + 255) / 256, strips = (n + 15) / 16;
    int first = (int)((long long)records * blockIdx.y / gridDim.y);
    int count = (int)((long long)records * (blockIdx.y + 1) / gridDim.y) - first;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) barrier_init(full + 8 * i, 1), barrier_init(empty + 8 * i, 4 * WGS);
        asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;" ::: "memory");
    }
#if VALUE == V_LEVELS
    if (threadIdx.x < 16) table[threadIdx.x] = levels[threadIdx.x];
#endif
    __syncthreads();
    let_next_begin();

    if (warp == 4 * WGS) {  // the warp that fetches
        if (lane) return;
        int here = min(STRIPS, strips - (int)blockIdx.x * STRIPS);
        auto weights = [&](int i) {
            unsigned barrier = full + 8 * (i % STAGES), to = base + i % STAGES * STAGE + X_BYTES;
            barrier_expect(barrier, X_BYTES + here * RECORD + SUM_BYTES);
            const unsigned char* from = (const unsigned char*)w;
            from += ((long long)blockIdx.x * STRIPS * records + first + i) * RECORD;
            for (int s = 0; s < here; s++) bulk_copy(to + s * RECORD, from + (long long)s * records * RECORD, RECORD, barrier);
        };
        auto tokens = [&](int i) {
            unsigned barrier = full + 8 * (i % STAGES), to = base + i % STAGES * STAGE;
            long long block = (long long)blockIdx.z * records + first + i;
            bulk_copy(to, xs + block * (X_BYTES / 2), X_BYTES, barrier);
            if (HAS_MIN) bulk_copy(to + X_BYTES + STRIPS * RECORD, sums + block * (SUBS * TOKENS), SUM_BYTES, barrier);
        };
        for (int i = 0; i < min(STAGES, count); i++) weights(i);
        wait_for_previous();
        for (int i = 0; i < min(STAGES, count); i++) tokens(i);
        for (int i = STAGES; i < count; i++) {
            barrier_wait(empty + 8 * (i % STAGES), (i / STAGES - 1) & 1);
            weights(i), tokens(i);
        }
        return;
    }

    float total[TOKENS / 2], part[TOKENS / 2];
#pragma unroll
    for (int c = 0; c < TOKENS / 2; c++) total[c] = 0;
    for (int i = 0; i < count; i++) {
        barrier_wait(full + 8 * (i % STAGES), i / STAGES & 1);
        const unsigned char* stage = stages + i % STAGES * STAGE;
        const unsigned char* mine = stage + X_BYTES + warp * RECORD;
        const float* its_sums = (const float*)(stage + X_BYTES + STRIPS * RECORD);
        unsigned its_tokens = base + i % STAGES * STAGE;
        unsigned a[2][CHUNK][4];
#if VALUE == V_LEVELS
        unsigned rest[2][CHUNK][4];
#endif
        auto decode = [&](int c) {  // chunk c of the record
#pragma unroll
            for (int e = 0; e < CHUNK; e++) {
                int s = c * CHUNK + e;
                Codes codes = codes_of(mine, s / 4, lane);
#if VALUE == V_LEVELS
                levels_of(codes, s % 4, table, a[c & 1][e], rest[c & 1][e]);
#else
                values_of(codes, s % 4, offset_of(mine, 16 * s / SUB, lane), a[c & 1][e]);
#endif
            }
        };
        auto columns = [&](int s) { return tokens_at(its_tokens + s / 4 * (128 * TOKENS) + s % 4 * 32); };
        decode(0);
#pragma unroll
        for (int c = 0; c < 16 / CHUNK; c++) {
            wgmma_fence();
#pragma unroll
            for (int e = 0; e < CHUNK; e++) {
                int s = c * CHUNK + e;
#if VALUE == V_LEVELS
                wgmma(part, rest[c & 1][e], columns(s), e != 0);
            }
#pragma unroll
            for (int e = 0; e < CHUNK; e++) {
                int s = c * CHUNK + e;
                wgmma(part, a[c & 1][e], columns(s), 1);
#else
                wgmma(part, a[c & 1][e], columns(s), s % (RUN / 16) != 0);
#endif
            }
            wgmma_commit();
            if (c + 1 < 16 / CHUNK) decode(c + 1);
            wgmma_wait();
#pragma unroll
            for (int v = 0; v < TOKENS / 2; v++) asm volatile("" : "+f"(part[v])::"memory");  // known only from here on
#pragma unroll
            for (int e = 0; e < CHUNK; e++)  // and these were needed up to here
                asm volatile("" ::"r"(a[c & 1][e][0]), "r"(a[c & 1][e][1]), "r"(a[c & 1][e][2]), "r"(a[c & 1][e][3]));
#if VALUE == V_LEVELS
#pragma unroll
            for (int e = 0; e < CHUNK; e++)
                asm volatile("" ::"r"(rest[c & 1][e][0]), "r"(rest[c & 1][e][1]), "r"(rest[c & 1][e][2]),
                             "r"(rest[c & 1][e][3]));
#endif
            if ((c + 1) * CHUNK % (RUN / 16) == 0) {
                int j = 16 * c * CHUNK / SUB;
                const unsigned char* row = mine + r * HEADER;
                float low, low_min, high, high_min;
                scale_of(row, j, low, low_min), scale_of(row + 8 * HEADER, j, high, high_min);
#pragma unroll
                for (int v = 0; v < TOKENS / 8; v++) {
                    float *d = total + 4 * v, *p = part + 4 * v;
                    d[0] += low * p[0], d[1] += low * p[1], d[2] += high * p[2], d[3] += high * p[3];
                    if (HAS_MIN) {
                        float2 sum = *(const float2*)(its_sums + j * TOKENS + 8 * v + 2 * t);
                        d[0] += low_min * sum.x, d[1] += low_min * sum.y;
                        d[2] += high_min * sum.x, d[3] += high_min * sum.y;
                    }
                }
            }
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(empty + 8 * (i % STAGES));
    }

    wait_for_previous();
    constexpr int THREADS = 128 * WGS;
    if (gridDim.y > 1) {
        int block = blockIdx.x + gridDim.x * blockIdx.z;
        float4* space = (float4*)workspace + (long long)block * gridDim.y * (TOKENS / 8 * THREADS) + threadIdx.x;
#pragma unroll
        for (int v = 0; v < TOKENS / 8; v++)
            space[(blockIdx.y * (TOKENS / 8) + v) * THREADS] =
                make_float4(total[4 * v], total[4 * v + 1], total[4 * v + 2], total[4 * v + 3]);
        __threadfence();
        asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory");
        if (threadIdx.x == 0) arrived = atomicAdd(counters + block, 1);
        asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory");
        if (arrived < (int)gridDim.y - 1) return;
        __threadfence();
        if (threadIdx.x == 0) counters[block] = 0;
#pragma unroll
        for (int v = 0; v < TOKENS / 8; v++) {
            float4 sum = {0, 0, 0, 0};
            for (int p = 0; p < (int)gridDim.y; p++) {
                float4 more = __ldcg(space + (p * (TOKENS / 8) + v) * THREADS);
                sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
            }
            total[4 * v] = sum.x, total[4 * v + 1] = sum.y, total[4 * v + 2] = sum.z, total[4 * v + 3] = sum.w;
        }
    }
#pragma unroll
    for (int v = 0; v < TOKENS / 2; v++) {
        int row = 16 * (blockIdx.x * STRIPS + warp) + r + 8 * (v >> 1 & 1);
        int token = TOKENS * blockIdx.z + 8 * (v >> 2) + 2 * t + (v & 1);
        if (row < n && token < m) store(y + (long long)token * n + row, IS_BF16 ? total[v] * back[token] : total[v]);
    }
#endif
}
