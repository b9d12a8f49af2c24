// quantize to IQ4_NL and IQ4_XS, byte for byte as `methods.kquants.iq` and ggml.
//
// 4096 x 4096 weights. Must move: 67,108,864 bytes in, 8,912,896 out (IQ4_XS); at 2835 GB/s (H100) 27 us.
// Must do: 16 trials a weight, in each the nearest of 16 uneven values, and 6 operations more. By comparing with the 15
// points halfway between neighbours that is 2 x 15 + 6, so 580 a weight: 16.8 M weights at 29.6 T/s take 330 us.
//
//     v1   compares. No table, nothing but arithmetic on registers.
//     v2   looks the value up. All points halfway are multiples of a half, so floor(2 v) decides, and adding a large
//          number under "round down" is that floor. A table of 512 floats in shared memory, 2 KiB, says the rest: 4
//          operations and a load instead of 30. The threads of a warp ask for different words and wait for each other
//          when those lie in one bank, but most weights are near zero, and equal words are sent to all at once.

// compile with: --fmad=false -DSUB_BLOCKS=1 -DLOOKUP=1 -DWEIGHTED=0
// compile with: --fmad=false -DSUB_BLOCKS=1 -DLOOKUP=1 -DWEIGHTED=1
// compile with: --fmad=false -DSUB_BLOCKS=8 -DLOOKUP=0 -DWEIGHTED=0
// compile with: --fmad=false -DSUB_BLOCKS=8 -DLOOKUP=0 -DWEIGHTED=1
// compile with: --fmad=false -DSUB_BLOCKS=8 -DLOOKUP=1 -DWEIGHTED=0
// compile with: --fmad=false -DSUB_BLOCKS=8 -DLOOKUP=1 -DWEIGHTED=1
//
// SUB_BLOCKS sub-blocks of 32 to a block: 1 in IQ4_NL, 8 in IQ4_XS. LOOKUP 0 is v1, 1 is v2. WEIGHTED says whether there is an
// importance; without one its pointer is not used.

#include "searches.cuh"
#include "tile.cuh"

#define TABLE 512  // values for floor(2 v) = -256 .. 255

__constant__ float VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

__device__ inline float middle(int i) { return (VALUES[i] + VALUES[i + 1]) * 0.5f; }  // exact

// The number of the nearest value. NaN is below no middle and gets the last, as in ggml.
__device__ inline int table_code(float v) {
    int code = 0;
#pragma unroll
    for (int i = 0; i < 15; i++) code = v < middle(i) ? code : i + 1;
    return code;
}

// The nearest value. `table` is not used in v1.
__device__ inline float table_value(float v, const float* table) {
    if (LOOKUP) {
        float within = fminf(fmaxf(v, -127.0f), 113.0f);
        return table[__float_as_int(__fadd_rd(within + within, MAGIC + 256.0f)) - 0x4B400000];
    }
    float value = VALUES[0];
#pragma unroll
    for (int i = 0; i < 15; i++) value = v < middle(i) ? value : VALUES[i + 1];
    return value;
}

__device__ inline void fill_table(float* table) {
    for (int i = threadIdx.x; i < TABLE; i += THREADS) table[i] = VALUES[table_code((float)(i - 256) * 0.5f)];
    __syncthreads();
}

// Scale of 32 weights; 0 below 1e-15.
__device__ inline float table_scale(const float* x, const float* weight, const float* table) {
    float extreme = largest_magnitude<32>(x), scale = 0.0f, best = 0.0f;
#pragma unroll 1
    for (int step = -8; step < 8; step++) {
        float inverse = step == -8 ? 1.0f / (-extreme / -127.0f) : (float)(step - 127) / extreme;
        float sum_xq = 0.0f, sum_qq = 0.0f;
#pragma unroll
        for (int i = 0; i < 32; i++) {
            float q = table_value(inverse * x[i], table), wq = weight[i] * q;
            sum_xq = sum_xq + wq * x[i];
            sum_qq = sum_qq + wq * q;
        }
        if (step == -8) {
            scale = sum_qq > 0.0f ? sum_xq / sum_qq : 0.0f;
            best = scale * sum_xq;
        } else if (sum_qq > 0.0f && sum_xq * sum_xq > best * sum_qq) {
            scale = sum_xq / sum_qq;
            best = scale * sum_xq;
        }
    }
    return fabsf(extreme) < EPS ? 0.0f : scale;
}

extern "C" __global__ void __launch_bounds__(THREADS) quantize(const float* w, const float* importance, long long blocks, int k,
                                                              unsigned char* out) {
    constexpr int BLOCKS = THREADS / SUB_BLOCKS, HALVES = SUB_BLOCKS == 1 ? 9 : 68, HEAD = SUB_BLOCKS == 1 ? 1 : 4;
    __shared__ Tile<32, SUB_BLOCKS> tile;
    __shared__ float scale[THREADS], mean[BLOCKS], table[TABLE];
    __shared__ int integers[THREADS];
    __shared__ u32 ds[BLOCKS], codes[THREADS * 8];
    int sub = threadIdx.x;
    i64 first = (i64)blockIdx.x * BLOCKS;
    if (LOOKUP) fill_table(table);
    load_tile<32, SUB_BLOCKS>(w, 32 * SUB_BLOCKS * first, 32 * SUB_BLOCKS * blocks, tile.x);

    float x[32], weight[32];
    load_run<32>(tile.x + tile_at<32, SUB_BLOCKS>(sub), x);
    if (WEIGHTED) {
        if (sub < BLOCKS) {
            float squares = 0.0f;
            for (int i = 0; i < SUB_BLOCKS; i++) {
                float run[32];
                load_run<32>(tile.x + tile_at<32, SUB_BLOCKS>(sub * SUB_BLOCKS + i), run);
                squares = sum_of_squares<32>(run, squares);
            }
            mean[sub] = squares * (2.0f / (float)(32 * SUB_BLOCKS));
        }
        __syncthreads();
        load_run<32>(importance + (32 * SUB_BLOCKS * first + 32 * sub) % k, weight);
#pragma unroll
        for (int i = 0; i < 32; i++) weight[i] = weight[i] * sqrtf(mean[sub / SUB_BLOCKS] + x[i] * x[i]);
    } else {
#pragma unroll
        for (int i = 0; i < 32; i++) weight[i] = x[i] * x[i];
    }
    float own = table_scale(x, weight, table);
    if (SUB_BLOCKS == 1) {
        ds[sub] = to_float16(own);
    } else {
        scale[sub] = own;
        __syncthreads();
        if (sub < BLOCKS) {
            float d = -largest_magnitude<SUB_BLOCKS>(scale + SUB_BLOCKS * sub) / 32.0f, inverse = reciprocal(d);
            for (int j = SUB_BLOCKS * sub; j < SUB_BLOCKS * (sub + 1); j++) {
                int integer = clip(nearest(inverse * scale[j]), -32, 31);
                integers[j] = integer + 32;
                scale[j] = d * (float)integer;
            }
            ds[sub] = to_float16(d);
        }
        __syncthreads();
        own = scale[sub];
    }
    float inverse = reciprocal(own);
    int final[32];
#pragma unroll
    for (int i = 0; i < 32; i++) final[i] = table_code(inverse * x[i]);
    store_codes<32>(final, codes + 8 * sub);
    __syncthreads();

    u16* halves = (u16*)out + HALVES * first;
    for (int i = threadIdx.x; i < BLOCKS * HALVES; i += THREADS) {
        int block = i / HALVES, half = i % HALVES;
        if (first + block >= blocks) break;
        const u16* c = (const u16*)(codes + 8 * SUB_BLOCKS * block);
        const int* s = integers + SUB_BLOCKS * block;
        u32 value = 0;
        if (half == 0) {
            value = ds[block];
        } else if (half < HEAD) {  // IQ4_XS: bits 5..4 of the eight integers, then bits 3..0
            if (half == 1)
                for (int j = 0; j < 8; j++) value |= s[j] >> 4 << 2 * j;
            else
                for (int j = 0; j < 4; j++) value |= (s[4 * (half - 2) + j] & 15) << 4 * j;
        } else {
            value = nibbles(c, half - HEAD, 16);
        }
        halves[i] = (u16)value;
    }
}
