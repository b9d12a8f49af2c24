// quantize to Q4_0 Q4_1 Q5_0 Q5_1 Q8_0, byte for byte as `methods.kquants.legacy` and ggml.
//
// 4096 x 4096 weights to Q4_0. Must move: 67,108,864 bytes in, 9,437,184 out; at 2835 GB/s (H100) 27 us.
// Must do: without importance some 12 operations a weight, 0.2 G, at 29.6 T/s 7 us: the memory is the floor. With
// importance 37 trials of 18 operations (Q4_1, Q5_1) or 19 of 9 (Q4_0, Q5_0) as in `quantize_k`: 0.4 ms and 0.1 ms.
// The mean of x^2 over each row, which the importance needs, is a chain of k additions in order, 4 clocks each: for 4096
// columns 10 us, if the thread that adds has nothing else to wait for. (A warp that fetches 32 columns, waits, adds, and
// fetches again takes 457 us.)
//
// One version: a thread a block of 32, in and out through shared memory (`tile.cuh`). Records of 18, 22 or 34 bytes are
// written 2 bytes a thread, side by side.

// compile with: --fmad=false -DBITS=4 -DMIN=0 -DWEIGHTED=0
// compile with: --fmad=false -DBITS=4 -DMIN=0 -DWEIGHTED=1
// compile with: --fmad=false -DBITS=4 -DMIN=1 -DWEIGHTED=0
// compile with: --fmad=false -DBITS=4 -DMIN=1 -DWEIGHTED=1
// compile with: --fmad=false -DBITS=5 -DMIN=0 -DWEIGHTED=0
// compile with: --fmad=false -DBITS=5 -DMIN=0 -DWEIGHTED=1
// compile with: --fmad=false -DBITS=5 -DMIN=1 -DWEIGHTED=0
// compile with: --fmad=false -DBITS=5 -DMIN=1 -DWEIGHTED=1
// compile with: --fmad=false -DBITS=8 -DMIN=0 -DWEIGHTED=0
//
// BITS 4, 5 or 8, MIN for Q4_1 and Q5_1; WEIGHTED says whether there is an importance. Without one neither its pointer nor
// `sums`, the result of `row_sums`, is used.

#include "searches.cuh"
#include "tile.cuh"

#define ROWS 32     // of a block of `row_sums`, 256 threads
#define COLUMNS 128  // of a row that it holds at a time
#define MOVERS 256

// Sum of x^2 over each row, from left to right, rounded after every addition. One warp adds, a thread a row; all eight
// fetch, square and turn the next 32 x 128 weights meanwhile, so that each can go along its own row in shared memory.
extern "C" __global__ void row_sums(const float* w, long long n, int k, float* sums) {
    __shared__ float tile[2][ROWS][COLUMNS + 1];
    i64 first = (i64)blockIdx.x * ROWS;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float total = 0.0f;
    for (int column = 0, turn = 0; column < k + COLUMNS; column += COLUMNS, turn ^= 1) {
        float4 next[ROWS * COLUMNS / 4 / MOVERS];
#pragma unroll
        for (int i = 0; i < ROWS / 8; i++) {  // a warp 4 rows; k is a multiple of 32, so 16 bytes lie within a row
            bool exists = first + 8 * i + warp < n && column + 4 * lane < k;
            next[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (exists) next[i] = *(const float4*)(w + (first + 8 * i + warp) * k + column + 4 * lane);
        }
        if (warp == 0 && column) {
#pragma unroll 16
            for (int i = 0; i < COLUMNS; i++) total = total + tile[turn ^ 1][lane][i];  // past the row's end, zeros
        }
#pragma unroll
        for (int i = 0; i < ROWS / 8; i++) {
            float* to = &tile[turn][8 * i + warp][4 * lane];
            to[0] = next[i].x * next[i].x;
            to[1] = next[i].y * next[i].y;
            to[2] = next[i].z * next[i].z;
            to[3] = next[i].w * next[i].w;
        }
        __syncthreads();
    }
    if (warp == 0 && first + lane < n) sums[first + lane] = total;
}

// Q4_0, Q5_0: scale; codes 0 .. 2 MIDDLE - 1.
template <int MIDDLE> __device__ inline float symmetric(const float* x, const float* weight, int* codes) {
    if (WEIGHTED) {
        float inverse;
        bool empty;
        float d = symmetric_scale<32, MIDDLE, true>(x, weight, inverse, empty);
#pragma unroll
        for (int i = 0; i < 32; i++) codes[i] = empty ? 0 : clip(nearest(inverse * x[i]), -MIDDLE, MIDDLE - 1) + MIDDLE;
        return d;
    }
    float d = largest_magnitude<32>(x) / (float)-MIDDLE, inverse = reciprocal(d);
#pragma unroll
    for (int i = 0; i < 32; i++) codes[i] = min(truncated(inverse * x[i] + ((float)MIDDLE + 0.5f)), 2 * MIDDLE - 1);
    return d;
}

// Q4_1, Q5_1: scale and minimum; codes 0 .. TOP.
template <int TOP>
__device__ inline float with_minimum(const float* x, const float* weight, int* codes, float& minimum) {
    if (WEIGHTED) {
        float d, inverse, start;
        scale_and_min<32, false>(x, weight, (float)TOP, -0.9f, 0.05f, 36, d, minimum, inverse, start);
#pragma unroll
        for (int i = 0; i < 32; i++) codes[i] = (int)nearest_within(inverse * (x[i] - start), 0.0f, (float)TOP);
        return d;
    }
    float high = minimum = x[0];
#pragma unroll
    for (int i = 1; i < 32; i++) {
        minimum = x[i] < minimum ? x[i] : minimum;
        high = x[i] > high ? x[i] : high;
    }
    float d = (high - minimum) / (float)TOP, inverse = reciprocal(d);
#pragma unroll
    for (int i = 0; i < 32; i++) codes[i] = min(truncated((x[i] - minimum) * inverse + 0.5f), TOP);
    return d;
}

extern "C" __global__ void __launch_bounds__(THREADS) quantize(const float* w, const float* importance, const float* sums,
                                                              long long blocks, int k, unsigned char* out) {
    constexpr int HEAD = MIN ? 2 : 1, FIFTH = BITS == 5 ? 2 : 0, HALVES = HEAD + FIFTH + (BITS == 8 ? 16 : 8);
    __shared__ Tile<32, 1> tile;
    __shared__ u32 codes[THREADS * 8], ds[THREADS], mins[MIN ? THREADS : 1];
    i64 first = (i64)blockIdx.x * THREADS, block = first + threadIdx.x;
    load_tile<32, 1>(w, 32 * first, 32 * blocks, tile.x);
    float x[32], weight[32], minimum = 0.0f, d;
    int own[32];
    load_run<32>(tile.x + tile_at<32, 1>(threadIdx.x), x);
    if (WEIGHTED) {
        i64 at = 32 * (block < blocks ? block : 0);
        float mean = sums[at / k] / (float)k;
        load_run<32>(importance + at % k, weight);
#pragma unroll
        for (int i = 0; i < 32; i++) weight[i] = weight[i] * sqrtf(mean + x[i] * x[i]);
    }
    if (BITS == 8) {
        d = 0.0f;
#pragma unroll
        for (int i = 0; i < 32; i++) d = fmaxf(d, fabsf(x[i]));
        d = d / 127.0f;
        float inverse = reciprocal(d);
#pragma unroll
        for (int i = 0; i < 32; i++) own[i] = truncated(round_half_away(x[i] * inverse));
    } else if (MIN) {
        d = with_minimum<(1 << BITS) - 1>(x, weight, own, minimum);
        mins[threadIdx.x] = to_float16(minimum);
    } else {
        d = symmetric<1 << (BITS - 1)>(x, weight, own);
    }
    ds[threadIdx.x] = to_float16(d);
    store_codes<32>(own, codes + 8 * threadIdx.x);
    __syncthreads();

    u16* halves = (u16*)out + HALVES * first;
    for (int i = threadIdx.x; i < THREADS * HALVES; i += THREADS) {
        int b = i / HALVES, half = i % HALVES;
        if (first + b >= blocks) break;
        const u16* c = (const u16*)(codes + 8 * b);
        u32 value = 0;
        if (half == 0) {
            value = ds[b];
        } else if (MIN && half == 1) {
            value = mins[b];
        } else if (BITS == 8) {
            value = c[half - HEAD];
        } else if (half < HEAD + FIFTH) {  // bit 4 of 16 codes, in order
            for (int j = 0; j < 8; j++) {
                u32 two = c[8 * (half - HEAD) + j] >> 4;
                value |= ((two & 1) | (two >> 7 & 2)) << 2 * j;
            }
        } else {
            value = nibbles(c, half - HEAD - FIFTH, 16);
        }
        halves[i] = (u16)value;
    }
}
