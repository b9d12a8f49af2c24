// gemv.cu: y = W x for one token, W in strips (strips.cuh), every format. This is what decode spends its time in.
//
// Must move, 4096 x 4096, int4-g128:   weights 8,781,824 + x 8,192 + y 16,384 B
// Must do:                             2 n k = 33.6 MFLOP
// Floor at 2.84 TB/s:                  3.1 us; 8192 x 28672: 43.4 us (float16: 166 us)
//
// v1, v2 are in gemv_plain.cu. A float32 product costs four instructions a weight, and 24 weights arrive a clock.
//
// v3  tensor cores as dot products    mma.sync multiplies 16 x 16 weights by 8 columns of activations in one
//     instruction; there is only one column, but two instructions a weight are left, and they are exact. The other
//     columns are not wasted: sub-block j's activations go to column j, the rest of that column being 0, so that column
//     j of the result is sub-block j's sum, and each lane scales two of them. 16 rows a block, its warps share k.
// v4  a ring of records in shared memory    cp.async fetches STAGES records ahead for each warp, without registers and
//     without waiting; one block a multiprocessor walks over strips, and its ring runs on from strip to strip. x is
//     brought to shared memory once.
// v5  v4 launched with overlap=True          the first records of the next launch are fetched while this one ends.
//
// Q2_K brings so many weights a second that even those instructions are too many: whole.cuh has fewer, in whole numbers.
//
// A model's decode step saves launches when a product takes in what lies between it and the one before: INPUT says what x
// is made of (I_NORM: h / rms(h) * extra, from float32 h; I_HALVES: two halves of an attention; every block does it for
// itself), with ADD the result is added to y, and with GATE the rows are eight of a and eight of b in turn, and y [n / 2]
// is silu(a) b: both are in one strip.
//
// compile with: -DX=f16 -DY=float -DIS_BF16=0 -DBITS=4 -DSUB=128 -DHEADER=6 -DVALUE=V_ZERO -DZEROS=4 -DSCALE=S_F16
// compile with: -DX=bf16 -DY=bf16 -DY_HALF=1 -DIS_BF16=1 -DBITS=4 -DSUB=32 -DHEADER=16 -DVALUE=V_OFFSET -DOFFSET=0 -DSCALE=S_Q4_K
// compile with: -DX=float -DY=f16 -DY_HALF=1 -DIS_BF16=0 -DINPUT=I_NORM -DGATE=1 -DBITS=4 -DSUB=32 -DHEADER=16 -DVALUE=V_OFFSET -DOFFSET=0 -DSCALE=S_Q4_K
// compile with: -DX=f16 -DY=float -DIS_BF16=0 -DINPUT=I_HALVES -DADD=1 -DBITS=4 -DSUB=128 -DHEADER=6 -DVALUE=V_ZERO -DZEROS=4 -DSCALE=S_F16
// compile with: -DX=f16 -DY=float -DIS_BF16=0 -DBITS=2 -DSUB=16 -DHEADER=20 -DVALUE=V_OFFSET -DOFFSET=0 -DSCALE=S_Q2_K
// compile with: -DX=f16 -DY=float -DIS_BF16=0 -DBITS=3 -DSUB=16 -DHEADER=14 -DVALUE=V_OFFSET -DOFFSET=4 -DSCALE=S_Q3_K
// compile with: -DX=f16 -DY=float -DIS_BF16=0 -DBITS=8 -DSUB=128 -DHEADER=8 -DVALUE=V_E4M3 -DSCALE=S_F32
// compile with: -DX=f16 -DY=float -DIS_BF16=0 -DBITS=4 -DSUB=64 -DHEADER=16 -DVALUE=V_LEVELS -DSCALE=S_F32
// compile with: -DX=f16 -DY=float -DIS_BF16=0 -DBITS=4 -DSUB=32 -DHEADER=8 -DVALUE=V_TABLE -DSCALE=S_IQ4_XS -DTABLE0=0x3f2d1801u -DTABLE1=0x766a5d4eu -DTABLE2=0xa6998d81u -DTABLE3=0xf1d9c5b5u
#include "strips.cuh"
#include "tokens.cuh"
#include "whole.cuh"

#ifndef WARPS
#define WARPS 16
#endif
#ifndef STAGES
#define STAGES 4
#endif
#define I_PLAIN 0
#define I_NORM 1
#define I_HALVES 2
#ifndef INPUT
#define INPUT I_PLAIN
#endif
#ifndef GATE
#define GATE 0
#endif
#define WHOLE (SCALE == S_Q2_K)  // in whole numbers: whole.cuh
#define OWN (WHOLE && INPUT == I_PLAIN && !IS_BF16)  // a warp prepares x for the records that it sees first, as it goes

__device__ __forceinline__ unsigned shared_word(unsigned address) {
    unsigned v;
    asm("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(address));
    return v;
}

// Dot products of a record's 16 rows with x; those of rows r and r + 8 are added to `low` and `high` in parts, which
// are spread over the four lanes of r. sums: of x over the record's sub-blocks. STAGED: x is at an address of shared
// memory, and so are zeros: it is quicker to read those than not to read.
template <int STAGED>
__device__ __forceinline__ void add_record(const unsigned char* record, const f16* x, unsigned xs, unsigned zeros,
                                           const float* sums, const unsigned* levels, int lane, float& low,
                                           float& high) {
    int r = lane >> 2, t = lane & 3;
    const unsigned char *first = record + r * HEADER, *second = first + 8 * HEADER;
    constexpr int CHAINS = VALUE == V_LEVELS || RUNS <= 8 ? 2 : 1;  // of additions, instead of one twice as long
    float d[CHAINS][4];
    float products[2] = {};
    Common has[2] = {common_of(first), common_of(second)};
    xs += 4 * t;
#pragma unroll
    for (int q = 0; q < 4; q++) {
        Codes c = codes_of(record, q, lane);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int s = 4 * q + i, j = 16 * s / RUN;
            bool begins = i < CHAINS && (RUNS > 8 ? q % 2 == 0 : q == 0);
            uint2 b = {0, 0};
            if (STAGED) {
                unsigned from = (r == j % 8 ? xs : zeros) + 32 * s;
                b = make_uint2(shared_word(from), shared_word(from + 16));
            } else if (r == j % 8) {
                b.x = *(const unsigned*)(x + 16 * s + 2 * t), b.y = *(const unsigned*)(x + 16 * s + 2 * t + 8);
            }
            unsigned a[4];
#if VALUE == V_LEVELS
            unsigned rest[4];
            levels_of(c, i, levels, a, rest);
            if (begins && i == 0) mma_first(d[0], rest, b), mma_first(d[1], a, b);
            else mma(d[0], rest, b), mma(d[1], a, b);
#else
            values_of(c, i, offset_of(record, 16 * s / SUB, lane), a);
            if (begins) mma_first(d[i % CHAINS], a, b);
            else mma(d[i % CHAINS], a, b);
#endif
        }
        if (RUNS > 8 ? q & 1 : q == 3) {
            int j = (RUNS > 8 ? 4 * (q - 1) : 0) + 2 * t;
            if (RUNS >= 8 || j < RUNS) {
#pragma unroll
                for (int e = 0; e < 4; e++) d[0][e] += CHAINS > 1 ? d[CHAINS - 1][e] : 0;
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float scale[2], minimum[2];
                    if (RUN < SUB) {  // both are of one sub-block
                        int sub = j * RUN / SUB;
                        scales_of(half ? second : first, sub & ~1, scale, minimum);
                        products[half] += (sub & 1 ? scale[1] : scale[0]) * (d[0][2 * half] + d[0][2 * half + 1]);
                        continue;
                    }
                    scales_of(half ? second : first, j, scale, minimum);
#if HAS_MIN  // what scale and minimum of a sub-block make nearly cancels: one right after the other
                    float2 sum = *(const float2*)(sums + j);
                    float& total = half ? high : low;
                    total += has[half].minimum * minimum[0] * sum.x;
                    total += has[half].scale * scale[0] * d[0][2 * half];
                    total += has[half].minimum * minimum[1] * sum.y;
                    total += has[half].scale * scale[1] * d[0][2 * half + 1];
                    continue;
#endif
                    products[half] += scale[0] * d[0][2 * half];
                    if (SUBS > 1) products[half] += scale[1] * d[0][2 * half + 1];
                }
            }
        }
    }
    if (!HAS_MIN) low += has[0].scale * UNIT * products[0], high += has[1].scale * UNIT * products[1];
}

__device__ __forceinline__ void add_lanes(float& low, float& high) {
    for (int step = 1; step < 4; step *= 2) {
        low += __shfl_xor_sync(~0u, low, step);
        high += __shfl_xor_sync(~0u, high, step);
    }
}

#if INPUT == I_PLAIN && !IS_BF16 && !WHOLE
// A block a strip; x float16, k a multiple of 256, formats without minima.
extern "C" __global__ void __launch_bounds__(32 * WARPS) gemv_v3(const uint4* w, const f16* x, const unsigned* levels,
                                                                  Y* y, int n, int k) {
    __shared__ float parts[WARPS][16];
    int warp = threadIdx.x / 32, lane = threadIdx.x & 31, records = k / 256;
    const unsigned char* strip = (const unsigned char*)w + (long long)blockIdx.x * records * RECORD;
    float low = 0, high = 0;
    for (int i = warp; i < records; i += WARPS)
        add_record<0>(strip + (long long)i * RECORD, x + 256 * i, 0, 0, 0, levels, lane, low, high);
    add_lanes(low, high);
    if ((lane & 3) == 0) parts[warp][lane >> 2] = low, parts[warp][8 + (lane >> 2)] = high;
    __syncthreads();
    if (threadIdx.x < 16) {
        float sum = 0;
        for (int i = 0; i < WARPS; i++) sum += parts[i][threadIdx.x];
        if (16 * blockIdx.x + threadIdx.x < n) store(y + 16 * blockIdx.x + threadIdx.x, sum);
    }
}

#endif

// Put down columns 8 i .. 8 i + 7 of x, and the sums of sub-blocks. All lanes of a warp call it, with neighbouring i.
__device__ __forceinline__ void put_eight(uint4 v, int i, f16* xs, float* sums) {
#if WHOLE
    put_whole(v, i, (unsigned*)xs, (unsigned char*)sums);
    return;
#endif
    ((uint4*)xs)[i] = v;
    if (HAS_MIN) {
        unsigned pairs[4] = {v.x, v.y, v.z, v.w};
        float sum = 0;
#pragma unroll
        for (int p = 0; p < 4; p++) sum += from_f16(pairs[p] & 0xffff) + from_f16(pairs[p] >> 16);
        for (int step = 1; step < SUB / 8; step *= 2) sum += __shfl_xor_sync(~0u, sum, step);
        if (i % (SUB / 8) == 0) sums[i / (SUB / 8)] = sum;
    }
}

#if INPUT == I_PLAIN
__device__ __forceinline__ bool in_eights(const X* x, int k) { return k % 8 == 0 && ((unsigned long long)x & 15) == 0; }

// Columns 8 i .. 8 i + 7 of x; zeros behind the end.
__device__ __forceinline__ uint4 eight_of(const X* x, int k, bool aligned, int i) {
    if (aligned) return 8 * i < k ? __ldcg((const uint4*)x + i) : make_uint4(0, 0, 0, 0);
    unsigned v[8];
    for (int e = 0; e < 8; e++) v[e] = 8 * i + e < k ? __ldcg(x + 8 * i + e) : 0;
    return make_uint4(v[0] | v[1] << 16, v[2] | v[3] << 16, v[4] | v[5] << 16, v[6] | v[7] << 16);
}
#endif

#if OWN
#elif INPUT == I_PLAIN
// x in shared memory, as float16. Returns what the result must be multiplied by.
__device__ __forceinline__ float fetch_x(const X* x, int k, int padded, f16* xs, float* sums, float* parts) {
    bool aligned = in_eights(x, k);
    auto eight = [&](int i) { return eight_of(x, k, aligned, i); };
    float back = 1;
#if IS_BF16
    unsigned largest = 0;
    for (int i = threadIdx.x; i < padded / 8; i += 32 * WARPS) {
        uint4 v = eight(i);
        unsigned pairs[4] = {v.x, v.y, v.z, v.w};
        for (int p = 0; p < 4; p++) largest = max(largest, max(pairs[p] & 0x7fff, pairs[p] >> 16 & 0x7fff));
    }
    largest = __reduce_max_sync(~0u, largest);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = __uint_as_float(largest);
    __syncthreads();
    for (int i = 0; i < WARPS; i++) largest = max(largest, __float_as_uint(parts[i]));
    float factor = power_for(largest, back);
    auto half = [&](unsigned pair) {
        return to_f16(from_bf16(pair & 0xffff) * factor) | (unsigned)to_f16(from_bf16(pair >> 16) * factor) << 16;
    };
    for (int i = threadIdx.x; i < padded / 8; i += 32 * WARPS) {  // padded / 8 is a multiple of 32: whole warps
        uint4 v = eight(i);
        put_eight(make_uint4(half(v.x), half(v.y), half(v.z), half(v.w)), i, xs, sums);
    }
#else
    if (aligned) {
        for (int i = threadIdx.x; i < padded / 8; i += 32 * WARPS)
            copy16(xs + 8 * i, 8 * i < k ? x + 8 * i : x, 8 * i < k ? 16 : 0);
    } else {
        for (int i = threadIdx.x; i < padded / 8; i += 32 * WARPS) ((uint4*)xs)[i] = eight(i);
    }
    commit();
    wait<0>();
    if (HAS_MIN)  // each thread's own eights have come
        for (int i = threadIdx.x; i < padded / 8; i += 32 * WARPS) put_eight(((uint4*)xs)[i], i, xs, sums);
#endif
    return back;
}

#elif INPUT == I_HALVES
// Put together what `attend` (decoder.cu) left: results over half of the places each, float16 [2, k], and behind them the
// logarithms of their weights, float32 [2, k / 128].
__device__ __forceinline__ void fetch_x(const X* halves, int k, int padded, f16* xs, float* sums) {
    const float* logs = (const float*)(halves + 2 * k);
    for (int i = threadIdx.x; i < padded / 8; i += 32 * WARPS) {
        uint4 x = {0, 0, 0, 0};
        if (8 * i < k) {
            uint4 v = __ldcg((const uint4*)halves + i), w = __ldcg((const uint4*)(halves + k) + i);
            float a = 1 / (1 + __expf(__ldcg(logs + k / 128 + i / 16) - __ldcg(logs + i / 16))), b = 1 - a;
            auto mix = [&](unsigned v, unsigned w) {
                f16 low = to_f16(a * from_f16(v & 0xffff) + b * from_f16(w & 0xffff));
                return low | (unsigned)to_f16(a * from_f16(v >> 16) + b * from_f16(w >> 16)) << 16;
            };
            x = make_uint4(mix(v.x, w.x), mix(v.y, w.y), mix(v.z, w.z), mix(v.w, w.w));
        }
        put_eight(x, i, xs, sums);
    }
}

#else
#define HELD 2  // eights of a thread that it keeps from one pass to the next

// Make x in shared memory from h; k is a multiple of 4.
__device__ __forceinline__ void fetch_x(const X* h, const f16* extra, int k, int padded, f16* xs, float* sums,
                                        float* parts) {
    float sum = 0;
    float4 held[HELD][2];
    auto four = [&](int i, int e) {  // e: which half of eight i
        return 8 * i + 4 * e < k ? __ldcg((const float4*)h + 2 * i + e) : make_float4(0, 0, 0, 0);
    };
    auto add = [&](float4 v) { sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; };
#pragma unroll
    for (int u = 0; u < HELD; u++)
        for (int e = 0; e < 2; e++) held[u][e] = four(threadIdx.x + 32 * WARPS * u, e);
#pragma unroll
    for (int u = 0; u < HELD; u++)
        for (int e = 0; e < 2; e++) add(held[u][e]);
    for (int i = threadIdx.x + 32 * WARPS * HELD; i < padded / 8; i += 32 * WARPS) add(four(i, 0)), add(four(i, 1));
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) sum += parts[i];
    float factor = rsqrtf(sum / k + 1e-5f);
    auto put = [&](int i, float4 a, float4 b) {
        uint2 weights[2];
        for (int e = 0; e < 2; e++) weights[e] = 8 * i + 4 * e < k ? ((const uint2*)extra)[2 * i + e] : make_uint2(0, 0);
        auto pair = [&](float a, float b, unsigned weight) {
            f16 low = to_f16(a * factor * from_f16(weight & 0xffff));
            return low | (unsigned)to_f16(b * factor * from_f16(weight >> 16)) << 16;
        };
        put_eight(make_uint4(pair(a.x, a.y, weights[0].x), pair(a.z, a.w, weights[0].y), pair(b.x, b.y, weights[1].x),
                             pair(b.z, b.w, weights[1].y)), i, xs, sums);
    };
#pragma unroll
    for (int u = 0; u < HELD; u++)
        if (threadIdx.x + 32 * WARPS * u < padded / 8) put(threadIdx.x + 32 * WARPS * u, held[u][0], held[u][1]);
    for (int i = threadIdx.x + 32 * WARPS * HELD; i < padded / 8; i += 32 * WARPS) put(i, four(i, 0), four(i, 1));
}
#endif

// Any x and k. Shared memory: the rings, x, 640 bytes of zeros (read from the 64th on: other banks than x's), and what
// products.gemv_shared counts besides.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
    gemv_v4(const uint4* w, const X* x, const f16* extra, const unsigned* levels, Y* y, int n, int k) {
    extern __shared__ uint4 memory[];
    int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    int records = (k + 255) / 256, strips = (n + 15) / 16, padded = 256 * records;
    unsigned char* ring = (unsigned char*)memory + warp * STAGES * RECORD;
    f16 *xs = (f16*)((unsigned char*)memory + WARPS * STAGES * RECORD), *zeros = xs + (WHOLE ? 2 : 1) * padded;
    float* parts = (float*)(zeros + 320);  // two sets, so that one barrier a strip is enough
    unsigned* table = (unsigned*)(parts + 2 * WARPS * 16);
    float* sums = (float*)(table + 16);

    // The records of this block's strips, one after the other, are dealt out to its warps in turn.
    int mine = (strips - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x;
    int left = mine, next = warp, filled = 0;  // strips not yet fetched, the record to fetch, the place in the ring
    const unsigned char* from = (const unsigned char*)w + ((long long)blockIdx.x * records + warp) * RECORD + 16 * lane;
    const long long jump = (long long)(gridDim.x - 1) * records * RECORD;  // over the strips of other blocks
    auto skip = [&]() {
        while (next >= records && left > 0) next -= records, left--, from += jump;
    };
    skip();
    auto fetch = [&]() {
        if (left > 0) {
            unsigned char* to = ring + filled * RECORD + 16 * lane;
#pragma unroll
            for (int o = 0; o < RECORD; o += 512)
                if (o + 512 <= RECORD || o + 16 * lane < RECORD) copy16(to + o, from + o, 16);
        }
        commit();
        filled = filled + 1 == STAGES ? 0 : filled + 1;
        next += WARPS, from += WARPS * RECORD;
        skip();
    };
    for (int i = 0; i < STAGES; i++) fetch();
    if (threadIdx.x < 40) ((uint4*)zeros)[threadIdx.x] = make_uint4(0, 0, 0, 0);
#if VALUE == V_LEVELS
    if (threadIdx.x < 16) table[threadIdx.x] = levels[threadIdx.x];
#endif
    let_next_begin();
    wait_for_previous();
    float back = 1;
#if OWN
    bool aligned = in_eights(x, k);
    uint4 own = eight_of(x, k, aligned, threadIdx.x);
#elif INPUT == I_PLAIN
    back = fetch_x(x, k, padded, xs, sums, parts);
#elif INPUT == I_HALVES
    fetch_x(x, k, padded, xs, sums);
#else
    fetch_x(x, extra, k, padded, xs, sums, parts);
#endif
#if !OWN
    __syncthreads();
#endif
    unsigned its_x, its_zeros;  // addresses that the compiler knows only from here on
    asm volatile("mov.b32 %0, %2; mov.b32 %1, %3;"
                 : "=&r"(its_x), "=&r"(its_zeros)
                 : "r"((unsigned)__cvta_generic_to_shared(xs)), "r"((unsigned)__cvta_generic_to_shared(zeros) + 64)
                 : "memory");
#if WHOLE
    Whole whole = whole_of(its_x, (unsigned)__cvta_generic_to_shared(sums), lane);
    unsigned its_ring = (unsigned)__cvta_generic_to_shared(ring);
#endif
    int record = warp;
    for (int s = 0; s < mine; s++) {
        float low = 0, high = 0;
        for (; record < records; record += WARPS) {
#if OWN
            if (s == 0) {  // the others see it after the barrier at the end of the strip
                put_eight(own, 32 * record + lane, xs, sums);
                own = eight_of(x, k, aligned, 32 * (record + WARPS) + lane);
            }
#endif
            wait<STAGES - 1>();
            __syncwarp();
#if WHOLE
            add_whole(its_ring + filled * RECORD, record, whole, lane, low, high);
#else
            add_record<1>(ring + filled * RECORD, 0, its_x + 512 * record, its_zeros, sums + SUBS * record, table, lane, low,
                          high);
#endif
            __syncwarp();
            fetch();
        }
        record -= records;
#if WHOLE
        if (lane & 1) low *= 65536, high *= 65536;
#endif
        add_lanes(low, high);
        float* set = parts + (s & 1) * WARPS * 16;
        if ((lane & 3) == 0) set[16 * warp + (lane >> 2)] = low, set[16 * warp + 8 + (lane >> 2)] = high;
        __syncthreads();
        if (warp == s % WARPS) {
            float sum = 0;
#pragma unroll
            for (int i = 0; i < WARPS / 2; i++) sum += set[16 * (2 * i + (lane >> 4)) + (lane & 15)];
            sum += __shfl_xor_sync(~0u, sum, 16);
#if GATE
            float b = __shfl_down_sync(~0u, sum, 8);
            int row = 8 * (blockIdx.x + gridDim.x * s) + lane;
            if (lane < 8 && row < n / 2) store(y + row, sum / (1 + __expf(-sum)) * b);
#else
            int row = 16 * (blockIdx.x + gridDim.x * s) + lane;
            if (lane < 16 && row < n) store(y + row, sum * back);
#endif
        }
    }
}
