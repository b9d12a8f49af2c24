// quantize to Q2_K Q3_K Q4_K Q5_K Q6_K, byte for byte as `methods.kquants.k` and ggml.
//
// 4096 x 4096 weights to Q4_K. Must move: 67,108,864 bytes in, 9,437,184 out; at 2835 GB/s (H100) 27 us.
// Must do: 22 trials of 18 operations a weight, so 400 and some 60 more. None may be fused, since ggml's are not. An
// H100 issues 132 x 4 x 32 operations a clock, 29.6 T/s at 1.755 GHz: 16.8 M weights take 260 us. So the searches are the
// floor, ten times the memory's, and the lesson is to keep the arithmetic units busy, not the memory.
//
//     v1   A thread a block of 256, as the C code goes about it. 65,536 threads for 4096 x 4096, 496 a multiprocessor,
//          which could hold 2048; a thread's block lies 1 KiB from its neighbour's.
//     v2   A thread a sub-block of 32: 8 times the threads. All 32 weights, their importances and codes are in
//          registers, 122 of them: loops over them are unrolled, nothing is loaded in a trial, nothing spilled. The 8
//          threads of a block meet in shared memory to quantize the scales. Writes single bytes. Twice as fast as v1,
//          and within 10 % of the floor.
//     v3   In and out through shared memory: global memory is read 16 bytes and written 4 bytes (Q3_K, Q6_K: 2) a
//          thread, side by side; packing works on 4 codes at a time. That is what one does where memory is the floor.
//          Here it is not, and Q4_K gains nothing (it loses 4 % to the barriers). It is kept because the weights of a
//          whole block, which an importance needs, are then at hand, and because it is one shape for all formats.
//
// v1 and v2 are in `quantize_k_plain.cu`, for Q4_K without importance. The threads for the searches of a block's own
// scales (with importance) are the first ones of the thread block: they fill one warp, while the others wait.
//
// compile with: --fmad=false -DBITS=2 -DWEIGHTED=0
// compile with: --fmad=false -DBITS=2 -DWEIGHTED=1
// compile with: --fmad=false -DBITS=3 -DWEIGHTED=0
// compile with: --fmad=false -DBITS=3 -DWEIGHTED=1
// compile with: --fmad=false -DBITS=4 -DWEIGHTED=0
// compile with: --fmad=false -DBITS=4 -DWEIGHTED=1
// compile with: --fmad=false -DBITS=5 -DWEIGHTED=0
// compile with: --fmad=false -DBITS=5 -DWEIGHTED=1
// compile with: --fmad=false -DBITS=6 -DWEIGHTED=0
// compile with: --fmad=false -DBITS=6 -DWEIGHTED=1
//
// BITS 2 to 6 says which format, WEIGHTED whether there is an importance; without one its pointer is not used.

#include "k_blocks.cuh"
#include "tile.cuh"

struct Trials {
    float top, first, step;
    int steps;
};

__device__ inline Trials trials() {
    if (WEIGHTED) return {(float)((1 << BITS) - 1), -0.9f, 0.05f, 36};
    if (BITS == 4) return {15.0f, -1.0f, 0.1f, 20};
    return {(float)((1 << BITS) - 1), -0.5f, 0.1f, 15};
}

// Bits of the float16 scale of a block's scales, or minima; their integers.
template <int N, int TOP>
__device__ inline u32 quantize_scales(const float* values, const float* total, int* integers) {
    return WEIGHTED ? to_float16(positive_scale<N, TOP>(values, total, integers)) : by_largest<N>(values, TOP, integers);
}

#if BITS == 2 || BITS == 4 || BITS == 5
// ---- v3: Q2_K, Q4_K, Q5_K, scale and minimum

extern "C" __global__ void __launch_bounds__(THREADS) quantize(const float* w, const float* importance, long long blocks, int k,
                                                              unsigned char* out) {
    constexpr int N = BITS == 2 ? 16 : 32, SUBS = 256 / N, BLOCKS = THREADS / SUBS, LIMIT = BITS == 2 ? 15 : 63;
    constexpr int RECORD = BITS == 2 ? 84 : BITS == 4 ? 144 : 176;
    const Trials t = trials();
    __shared__ Tile<N, SUBS> tile;
    __shared__ float scale[THREADS], low[THREADS], total[WEIGHTED ? THREADS : 1], mean[BLOCKS];
    __shared__ int scales[THREADS], mins[THREADS];
    __shared__ u8 six[THREADS], six_mins[THREADS];
    __shared__ u32 ds[BLOCKS], dmins[BLOCKS], codes[THREADS * N / 4];
    int sub = threadIdx.x, j = sub % SUBS, mine = sub / SUBS;
    i64 first = (i64)blockIdx.x * BLOCKS;
    load_tile<N, SUBS>(w, 256 * first, 256 * blocks, tile.x);

    float x[N], weight[N], minimum, inverse, start;
    load_run<N>(tile.x + tile_at<N, SUBS>(sub), x);
    if (WEIGHTED) {
        if (sub < BLOCKS) {
            float squares = 0.0f;
            for (int i = 0; i < SUBS; i++) {
                float run[N];
                load_run<N>(tile.x + tile_at<N, SUBS>(sub * SUBS + i), run);
                squares = sum_of_squares<N>(run, squares);
            }
            mean[sub] = (BITS == 2 ? 1.0f : 2.0f) * squares / 256.0f;
        }
        __syncthreads();
        load_run<N>(importance + (256 * first + N * sub) % k, weight);
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < N; i++) {
            weight[i] = weight[i] * sqrtf(mean[mine] + x[i] * x[i]);
            sum = sum + weight[i];
        }
        total[sub] = sum;
    } else {
        float rms = BITS == 2 ? 0.0f : sqrtf(sum_of_squares<N>(x) / (float)N);
#pragma unroll
        for (int i = 0; i < N; i++) weight[i] = rms + fabsf(x[i]);
    }
    scale_and_min<N, BITS == 2 && !WEIGHTED>(x, weight, t.top, t.first, t.step, t.steps, scale[sub], minimum, inverse, start);
    low[sub] = -minimum;
    __syncthreads();

    if (sub < 2 * BLOCKS) {  // the scales of the blocks, and their minima
        int block = sub % BLOCKS, at = SUBS * block, integers[SUBS];
        bool is_min = sub >= BLOCKS;
        float values[SUBS], sums[SUBS];
#pragma unroll
        for (int i = 0; i < SUBS; i++) {
            values[i] = is_min ? low[at + i] : scale[at + i];
            sums[i] = WEIGHTED ? total[at + i] : 0.0f;
        }
        u32 d = quantize_scales<SUBS, LIMIT>(values, sums, integers);
        (is_min ? dmins : ds)[block] = d;
#pragma unroll
        for (int i = 0; i < SUBS; i++) (is_min ? mins : scales)[at + i] = integers[i];
    }
    __syncthreads();

    int own, own_min, final[N];
    if (BITS == 2) {  // they share a byte; a negative scale, above 15, runs over into its minimum
        int byte = (scales[sub] | mins[sub] << 4) & 255;
        own = byte & 15;
        own_min = byte >> 4;
    } else {
        own = six_bits<WEIGHTED && BITS == 4>(scales + sub - j, j);
        own_min = six_bits<WEIGHTED && BITS == 4>(mins + sub - j, j);
    }
    six[sub] = own;
    six_mins[sub] = own_min;
    float width = from_float16(ds[mine]) * (float)own, offset = from_float16(dmins[mine]) * (float)own_min;
    final_codes<N>(x, width, offset, inverse, start, t.top, final);
    store_codes<N>(final, codes + N / 4 * sub);
    __syncthreads();

    u32* words = (u32*)(out + RECORD * first);
    for (int i = threadIdx.x; i < BLOCKS * (RECORD / 4); i += THREADS) {
        int block = i / (RECORD / 4), word = i % (RECORD / 4);
        if (first + block >= blocks) break;
        const u32* c = codes + 64 * block;
        u32 both = ds[block] | dmins[block] << 16, value;
        if (BITS == 2) {
            if (word < 4) {
                const u8 *s = six + SUBS * block + 4 * word, *m = six_mins + SUBS * block + 4 * word;
                value = (s[0] | m[0] << 4) | (s[1] | m[1] << 4) << 8 | (s[2] | m[2] << 4) << 16 | (u32)(s[3] | m[3] << 4) << 24;
            } else {
                value = word < 20 ? pairs(c, word - 4, 0) : both;
            }
        } else if (word == 0) {
            value = both;
        } else if (word < 4) {
            value = packed_scales(six + SUBS * block, six_mins + SUBS * block, word - 1);
        } else if (BITS == 5 && word < 12) {
            value = bits_of(c, word - 4, 4);
        } else {
            value = nibbles(c, word - (BITS == 5 ? 12 : 4), 32);
        }
        words[i] = value;
    }
}

#else
// ---- v3: Q3_K, Q6_K, symmetric

extern "C" __global__ void __launch_bounds__(THREADS) quantize(const float* w, const float* importance, long long blocks, int k,
                                                              unsigned char* out) {
    constexpr int N = 16, SUBS = 16, BLOCKS = THREADS / SUBS, TOP = BITS == 3 ? 4 : 32, LOW = BITS == 3 ? -32 : -128;
    constexpr int RECORD = BITS == 3 ? 110 : 210;
    constexpr bool BY_DESCENT = BITS == 3 && !WEIGHTED;
    __shared__ Tile<N, SUBS> tile;
    __shared__ float scale[THREADS], total[THREADS], mean[BLOCKS];
    __shared__ int scales[THREADS];
    __shared__ u32 ds[BLOCKS], codes[THREADS * N / 4];
    __shared__ bool empties[BLOCKS];
    int sub = threadIdx.x, mine = sub / SUBS;
    i64 first = (i64)blockIdx.x * BLOCKS;
    load_tile<N, SUBS>(w, 256 * first, 256 * blocks, tile.x);

    float x[N], weight[N], inverse = 0.0f;
    int found[N];
    bool none;
    load_run<N>(tile.x + tile_at<N, SUBS>(sub), x);
    if (WEIGHTED) {
        load_run<N>(importance + (256 * first + N * sub) % k, weight);
        if (BITS == 3) {
            if (sub < BLOCKS) {
                float squares = 0.0f;
                for (int i = 0; i < SUBS; i++) {
                    float run[N];
                    load_run<N>(tile.x + tile_at<N, SUBS>(sub * SUBS + i), run);
                    squares = sum_of_squares<N>(run, squares);
                }
                mean[sub] = 2.0f * squares / 256.0f;
            }
            __syncthreads();
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < N; i++) {
                weight[i] = weight[i] * sqrtf(mean[mine] + x[i] * x[i]);
                sum = sum + weight[i];
            }
            total[sub] = sum;
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) weight[i] = x[i] * x[i];
    }
    if (BY_DESCENT)
        scale[sub] = symmetric_scale_by_descent<N, TOP>(x, found);
    else
        scale[sub] = symmetric_scale<N, TOP, true>(x, weight, inverse, none);
    __syncthreads();

    if (sub < BLOCKS) {  // the scales of the blocks
        float values[SUBS], sums[SUBS];
#pragma unroll
        for (int i = 0; i < SUBS; i++) values[i] = scale[SUBS * sub + i];
        float extreme = largest_magnitude<SUBS>(values), q;
        bool zero;
        u32 d;
        if (BITS == 3 && WEIGHTED) {
#pragma unroll
            for (int i = 0; i < SUBS; i++) sums[i] = total[SUBS * sub + i];
            d = to_float16(symmetric_scale<SUBS, 32, false>(values, sums, q, zero));
        } else {
            q = (float)LOW / extreme;
            zero = extreme == 0.0f;
            d = zero ? 0 : to_float16(1.0f / q);
        }
        bool empty = BITS == 6 && !(fabsf(extreme) >= EPS);
#pragma unroll
        for (int i = 0; i < SUBS; i++) {
            int integer = zero ? LOW : clip(nearest(q * values[i]), LOW, -LOW - 1);
            scales[SUBS * sub + i] = empty ? 0 : integer;
        }
        ds[sub] = empty ? 0 : d;
        empties[sub] = empty;
    }
    __syncthreads();

    float width = from_float16(ds[mine]) * (float)scales[sub];
    int final[N];
    if (width == 0.0f) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (BY_DESCENT)
                final[i] = found[i];
            else
                final[i] = inverse == 0.0f ? 0 : clip(nearest(inverse * x[i]), -TOP, TOP - 1) + TOP;
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) final[i] = clip(nearest(x[i] / width), -TOP, TOP - 1) + TOP;
    }
    if (BITS == 6 && empties[mine]) {
#pragma unroll
        for (int i = 0; i < N; i++) final[i] = 0;
    }
    store_codes<N>(final, codes + N / 4 * sub);
    __syncthreads();

    u16* halves = (u16*)(out + RECORD * first);
    for (int i = threadIdx.x; i < BLOCKS * (RECORD / 2); i += THREADS) {
        int block = i / (RECORD / 2), half = i % (RECORD / 2);
        if (first + block >= blocks) break;
        const u16* c = (const u16*)(codes + 64 * block);
        const int* s = scales + SUBS * block;
        u32 value;
        if (BITS == 3) {
            if (half < 16) {
                value = bits_of(c, half, 2);
            } else if (half < 48) {
                value = pairs(c, half - 16, 0);
            } else if (half < 52) {
                int j = 2 * (half - 48);
                value = (s[j] + 32 & 15) | (s[j + 8] + 32 & 15) << 4 | (s[j + 1] + 32 & 15) << 8 | (s[j + 9] + 32 & 15) << 12;
            } else if (half < 54) {
                int j = 2 * (half - 52);
                value = 0;
                for (int plane = 0; plane < 4; plane++) {
                    value |= (s[4 * plane + j] + 32) >> 4 << 2 * plane;
                    value |= (s[4 * plane + j + 1] + 32) >> 4 << (2 * plane + 8);
                }
            } else {
                value = ds[block];
            }
        } else {
            if (half < 64)
                value = nibbles(c, half, 64);
            else if (half < 96)
                value = pairs(c, half - 64, 4);
            else
                value = half < 104 ? (s[2 * (half - 96)] & 255) | (s[2 * (half - 96) + 1] & 255) << 8 : ds[block];
        }
        halves[i] = (u16)value;
    }
}
#endif
