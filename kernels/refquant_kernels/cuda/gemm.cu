// gemm.cu: y = x W^T for 2 to 128 tokens and more, W in strips (strips.cuh), every format.
//
// Must move, 8192 x 28672, int4-g128:   weights 122.9 MB, once, whatever the number of tokens up to 128
// Must do:                              2 m n k: 7.5 GFLOP for 16 tokens, 60 for 128
// Floor of an H100:                     40 us of memory; 128 tokens: 61 us of arithmetic at 989 TFLOP/s, which mma.sync
//                                       does not reach: 989 is what wgmma has (gemm_sm90.cu)
//
// A block multiplies 16 RT RW rows by 8 NT CW tokens. Its RW x CW warps each have 16 RT rows and 8 NT tokens; a record of
// all its rows and the same 256 columns of x wait in shared memory, STAGES deep, brought there by cp.async.
//
// - Weights become float16 in registers, where mma.sync wants them, once for NT columns of 8 tokens; nothing is written
//   back to shared memory. A row's weights are decoded by CW warps.
// - x is read from shared memory by every row of warps, by ldmatrix: RT = 2 halves what RT = 1 needs for a product. Its
//   16-byte pieces are exchanged by token (piece ^ token % 8), so that no two rows of a matrix meet in a bank.
// - Scales are applied in float32, once for RUN columns. Sums of the activations, for minima, come from `prepare`.
// - There are fewer blocks of rows than multiprocessors, so k is split as well. The parts of a sum go to a workspace and
//   the block that arrives last adds them, in order: the result does not depend on which one that is.
//
// compile with: -DX=f16 -DY=float -DIS_BF16=0 -DRT=2 -DNT=2 -DRW=4 -DCW=2 -DSTAGES=2 -DBITS=4 -DSUB=128 -DHEADER=6 -DVALUE=V_ZERO -DZEROS=4 -DSCALE=S_F16
// compile with: -DX=bf16 -DY=bf16 -DY_HALF=1 -DIS_BF16=1 -DRT=1 -DNT=1 -DRW=8 -DCW=1 -DSTAGES=4 -DBITS=5 -DSUB=32 -DHEADER=16 -DVALUE=V_OFFSET -DOFFSET=0 -DSCALE=S_Q4_K
// compile with: -DX=f16 -DY=float -DIS_BF16=0 -DRT=2 -DNT=2 -DRW=4 -DCW=1 -DSTAGES=2 -DBITS=3 -DSUB=16 -DHEADER=14 -DVALUE=V_OFFSET -DOFFSET=4 -DSCALE=S_Q3_K
// compile with: -DX=f16 -DY=float -DIS_BF16=0 -DRT=1 -DNT=2 -DRW=8 -DCW=1 -DSTAGES=3 -DBITS=4 -DSUB=64 -DHEADER=16 -DVALUE=V_LEVELS -DSCALE=S_F32
#include "strips.cuh"
#include "tokens.cuh"

#define THREADS (32 * RW * CW)
#define TOKENS (8 * NT * CW)
#define STRIPS (RW * RT)
#define STAGE (STRIPS * RECORD + 512 * TOKENS + (HAS_MIN ? 4 * SUBS * TOKENS : 0))  // bytes

// Two tiles of 8 tokens (or one) by the 16 columns of a step, as mma.sync wants its second operand.
template <int TWO>
__device__ __forceinline__ void load_matrices(uint2* b, const unsigned char* row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    if (TWO)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(b[0].x), "=r"(b[0].y), "=r"(b[1].x), "=r"(b[1].y)
                     : "r"(address));
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                     : "=r"(b[0].x), "=r"(b[0].y)
                     : "r"(address));
}

// x [m, k] as float16 [m up to TOKENS, k up to 256], zeros behind; `back` [m] undoes the power of two that bfloat16
// needs; sums of sub-blocks [m / TOKENS, k / SUB, TOKENS]. A block of 256 threads a token.
extern "C" __global__ void prepare(const X* x, f16* xs, float* back, float* sums, int m, int k) {
    int token = blockIdx.x, padded = (k + 255) / 256 * 256;
    const X* from = x + (long long)token * k;
    f16* to = xs + (long long)token * padded;
    float factor = begin_token(from, k, token < m, back + token);
    for (int i = threadIdx.x; i < padded; i += 256) {
        f16 value = 0;
#if IS_BF16
        if (token < m && i < k) value = to_f16(from_bf16(from[i]) * factor);
#else
        if (token < m && i < k) value = from[i];
#endif
        to[i] = value;
    }
    __syncthreads();
    if (HAS_MIN)
        for (int j = threadIdx.x; j < padded / SUB; j += 256) {
            float sum = 0;
            for (int c = 0; c < SUB; c++) sum += from_f16(to[j * SUB + c]);
            sums[((long long)(token / TOKENS) * (padded / SUB) + j) * TOKENS + token % TOKENS] = sum;
        }
}

// x float16 [m, k], k a multiple of 8, as it is or as `prepare` made it. Grid: blocks of rows, parts of k, blocks of
// tokens. workspace: 16 bytes x THREADS x RT x NT x blocks; counters: 0 before and after, one for every block of a y.
extern "C" __global__ void __launch_bounds__(THREADS)
    gemm(const uint4* w, const f16* x, const float* sums, const float* back, const unsigned* levels, Y* y,
         float* workspace, int* counters, int m, int n, int k) {
    extern __shared__ uint4 memory[];
    __shared__ unsigned table[16];
    __shared__ int arrived;
    unsigned char* stages = (unsigned char*)memory;
    int lane = threadIdx.x & 31, warp = threadIdx.x / 32, r = lane >> 2, t = lane & 3;
    int row_warp = warp % RW, column_warp = warp / RW;
    int records = (k + 255) / 256, strips = (n + 15) / 16;
    int first = (int)((long long)records * blockIdx.y / gridDim.y);
    int count = (int)((long long)records * (blockIdx.y + 1) / gridDim.y) - first;
    int first_token = TOKENS * blockIdx.z;

    auto fetch_weights = [&](int i) {
        if (i >= count) return;
        unsigned char* to = stages + i % STAGES * STAGE;
#pragma unroll 4
        for (int c = threadIdx.x; c < STRIPS * (RECORD / 16); c += THREADS) {
            int strip = c / (RECORD / 16), piece = c % (RECORD / 16);
            long long from = ((long long)(blockIdx.x * STRIPS + strip) * records + first + i) * (RECORD / 16) + piece;
            if (blockIdx.x * STRIPS + strip < strips) copy16(to + 16 * c, w + from, 16);
        }
    };
    auto fetch_x = [&](int i) {
        if (i >= count) return;
        unsigned char* to = stages + i % STAGES * STAGE + STRIPS * RECORD;
#pragma unroll 4
        for (int c = threadIdx.x; c < 32 * TOKENS; c += THREADS) {
            int token = c / 32, piece = c % 32, column = 256 * (first + i) + 8 * piece;
            bool there = first_token + token < m && column < k;
            const f16* from = there ? x + (long long)(first_token + token) * k + column : x;
            copy16(to + 512 * token + 16 * (piece ^ (token & 7)), from, there ? 16 : 0);
        }
        if (HAS_MIN) {
            const float* from = sums + (long long)(blockIdx.z * records + first + i) * SUBS * TOKENS;
            for (int c = threadIdx.x; c < SUBS * TOKENS / 4; c += THREADS)
                copy16(to + 512 * TOKENS + 16 * c, from + 4 * c, 16);
        }
    };

    for (int i = 0; i < STAGES - 1; i++) fetch_weights(i);
    let_next_begin();
    wait_for_previous();
    for (int i = 0; i < STAGES - 1; i++) fetch_x(i), commit();  // the first group holds the weights as well
#if VALUE == V_LEVELS
    if (threadIdx.x < 16) table[threadIdx.x] = levels[threadIdx.x];
#endif

    __align__(16) float total[RT][NT][4];
#pragma unroll
    for (int v = 0; v < RT; v++)
#pragma unroll
        for (int c = 0; c < NT; c++) total[v][c][0] = total[v][c][1] = total[v][c][2] = total[v][c][3] = 0;

    for (int i = 0; i < count; i++) {
        wait<STAGES - 2>();
        __syncthreads();
        fetch_weights(i + STAGES - 1), fetch_x(i + STAGES - 1), commit();
        const unsigned char* stage = stages + i % STAGES * STAGE;
        const unsigned char* mine = stage + row_warp * RT * RECORD;
        const unsigned char* xs = stage + STRIPS * RECORD + 512 * 8 * NT * column_warp;
        const float* its_sums = (const float*)(stage + STRIPS * RECORD + 512 * TOKENS) + 8 * NT * column_warp;
        float part[RT][NT][4];
        constexpr int SUM = VALUE == V_LEVELS ? 16 : RUN;  // columns; of levels: smaller parts, larger parts, and done
        constexpr int GROUPS = SUM >= 64 ? 256 / SUM : 4;  // of steps that a loop goes through
#pragma unroll 1
        for (int group = 0; group < GROUPS; group++)
#pragma unroll
            for (int i = 0; i < 16 / GROUPS; i++) {
                int s = group * (16 / GROUPS) + i, j = 16 * s / SUB;
                unsigned a[RT][4], rest[RT][4];
#pragma unroll
                for (int v = 0; v < RT; v++) {
                    Codes codes = codes_of(mine + v * RECORD, s / 4, lane);
#if VALUE == V_LEVELS
                    levels_of(codes, i % 4, table, a[v], rest[v]);
#else
                    values_of(codes, i % 4, offset_of(mine + v * RECORD, j, lane), a[v]);
#endif
                }
                // lanes 0-7 name the rows of the first matrix, 8-15 those of the second, ...: 8 tokens by 8 columns each
                int piece = (2 * s + (lane >> 3 & 1)) ^ (lane & 7);
                const unsigned char* from = xs + 512 * (lane & 7) + 16 * piece + (NT > 1 ? 4096 * (lane >> 4) : 0);
                uint2 b[NT];
#pragma unroll
                for (int c = 0; c < NT; c += 2) load_matrices<(NT > 1)>(b + c, from + 4096 * c);
#pragma unroll
                for (int c = 0; c < NT; c++)
#pragma unroll
                    for (int v = 0; v < RT; v++) {
#if VALUE == V_LEVELS
                        mma_first(part[v][c], rest[v], b[c]);
                        mma(part[v][c], a[v], b[c]);
#else
                        if (i % (SUM / 16) == 0) mma_first(part[v][c], a[v], b[c]);
                        else mma(part[v][c], a[v], b[c]);
#endif
                    }
                if ((i + 1) % (SUM / 16) == 0)
#pragma unroll
                    for (int v = 0; v < RT; v++) {
                        const unsigned char* row = mine + v * RECORD + r * HEADER;
                        float low, low_min, high, high_min;
                        scale_of(row, j, low, low_min), scale_of(row + 8 * HEADER, j, high, high_min);
#pragma unroll
                        for (int c = 0; c < NT; c++) {
                            float* d = total[v][c];
                            d[0] += low * part[v][c][0], d[1] += low * part[v][c][1];
                            d[2] += high * part[v][c][2], d[3] += high * part[v][c][3];
                            if (HAS_MIN) {
                                float2 sum = *(const float2*)(its_sums + j * TOKENS + 8 * c + 2 * t);
                                d[0] += low_min * sum.x, d[1] += low_min * sum.y;
                                d[2] += high_min * sum.x, d[3] += high_min * sum.y;
                            }
                        }
                    }
            }
    }

    if (gridDim.y > 1) {
        int block = blockIdx.x + gridDim.x * blockIdx.z;
        float4* space = (float4*)workspace + (long long)block * gridDim.y * (RT * NT * THREADS) + threadIdx.x;
#pragma unroll
        for (int v = 0; v < RT * NT; v++)
            space[(blockIdx.y * RT * NT + v) * THREADS] = *(float4*)total[v / NT][v % NT];
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) arrived = atomicAdd(counters + block, 1);
        __syncthreads();
        if (arrived < (int)gridDim.y - 1) return;
        __threadfence();
        if (threadIdx.x == 0) counters[block] = 0;
#pragma unroll
        for (int v = 0; v < RT * NT; v++) {
            float4 sum = {0, 0, 0, 0};
            for (int part = 0; part < (int)gridDim.y; part++) {
                float4 p = __ldcg(space + (part * RT * NT + v) * THREADS);
                sum.x += p.x, sum.y += p.y, sum.z += p.z, sum.w += p.w;
            }
            *(float4*)total[v / NT][v % NT] = sum;
        }
    }
#pragma unroll
    for (int v = 0; v < RT; v++)
#pragma unroll
        for (int c = 0; c < NT; c++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int row = 16 * ((blockIdx.x * RW + row_warp) * RT + v) + r + 8 * (e >> 1);
                int token = first_token + 8 * (column_warp * NT + c) + 2 * t + (e & 1);
                float value = total[v][c][e];
                if (row >= n || token >= m) continue;
                if (IS_BF16) value *= back[token];
                store(y + (long long)token * n + row, value);
            }
}
