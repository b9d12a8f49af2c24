// quantize to Q4_K without importance, the first two rungs of the ladder that `quantize_k.cu` describes and ends.
//
//     v1   A thread a block of 256, as the C code goes about it.
//     v2   A thread a sub-block of 32, everything in registers; the 8 threads of a block meet in shared memory.
//
// compile with: --fmad=false

#include "k_blocks.cuh"
#include "tile.cuh"

#define TOP 15.0f

extern "C" __global__ void q4_k_v1(const float* w, long long blocks, unsigned char* out) {
    i64 block = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (block >= blocks) return;
    float scale[8], low[8], inverse[8], start[8];
    int scales[8], mins[8];
    w += 256 * block;
    out += 144 * block;
#pragma unroll 1
    for (int j = 0; j < 8; j++) {
        const float* x = w + 32 * j;
        float weight[32], rms = sqrtf(sum_of_squares<32>(x) / 32.0f), minimum;
        for (int i = 0; i < 32; i++) weight[i] = rms + fabsf(x[i]);
        scale_and_min<32, false>(x, weight, TOP, -1.0f, 0.1f, 20, scale[j], minimum, inverse[j], start[j]);
        low[j] = -minimum;
    }
    u32 d = by_largest<8>(scale, 63, scales), dmin = by_largest<8>(low, 63, mins);
    u8 six[16];
    for (int j = 0; j < 8; j++) {
        six[j] = six_bits<false>(scales, j);
        six[j + 8] = six_bits<false>(mins, j);
    }
    out[0] = d; out[1] = d >> 8; out[2] = dmin; out[3] = dmin >> 8;
    for (int i = 0; i < 12; i++) out[4 + i] = packed_scales(six, six + 8, i / 4) >> 8 * (i % 4);
#pragma unroll 1
    for (int j = 0; j < 8; j++) {
        int codes[32];
        final_codes<32>(w + 32 * j, from_float16(d) * six[j], from_float16(dmin) * six[j + 8], inverse[j], start[j], TOP, codes);
        u8* bytes = out + 16 + j / 2 * 32;
        for (int i = 0; i < 32; i++) bytes[i] = j % 2 ? bytes[i] | codes[i] << 4 : codes[i];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) q4_k_v2(const float* w, long long blocks, unsigned char* out) {
    __shared__ float scale[THREADS], low[THREADS];
    __shared__ int scales[THREADS], mins[THREADS];
    __shared__ u32 ds[THREADS / 8], dmins[THREADS / 8];
    __shared__ u8 high[THREADS][32];
    int sub = threadIdx.x, j = sub % 8, mine = sub / 8;
    i64 block = (i64)blockIdx.x * (THREADS / 8) + mine;
    bool exists = block < blocks;
    float x[32], weight[32], minimum, inverse, start;
    load_run<32>(w + 32 * (8 * (exists ? block : 0) + j), x);
    float rms = sqrtf(sum_of_squares<32>(x) / 32.0f);
#pragma unroll
    for (int i = 0; i < 32; i++) weight[i] = rms + fabsf(x[i]);
    scale_and_min<32, false>(x, weight, TOP, -1.0f, 0.1f, 20, scale[sub], minimum, inverse, start);
    low[sub] = -minimum;
    __syncthreads();
    if (j == 0) ds[mine] = by_largest<8>(scale + sub, 63, scales + sub);
    if (j == 1) dmins[mine] = by_largest<8>(low + sub - 1, 63, mins + sub - 1);
    __syncthreads();
    int own = six_bits<false>(scales + sub - j, j), own_min = six_bits<false>(mins + sub - j, j), codes[32];
    final_codes<32>(x, from_float16(ds[mine]) * own, from_float16(dmins[mine]) * own_min, inverse, start, TOP, codes);
    __syncthreads();
    scales[sub] = own;
    mins[sub] = own_min;
#pragma unroll
    for (int i = 0; i < 32; i++) high[sub][i] = codes[i];
    __syncthreads();
    if (!exists) return;
    out += 144 * block;
    if (j % 2 == 0)
        for (int i = 0; i < 32; i++) out[16 + 16 * j + i] = codes[i] | high[sub + 1][i] << 4;
    if (j == 0) {
        u8 six[16];
        for (int i = 0; i < 8; i++) {
            six[i] = scales[sub + i];
            six[i + 8] = mins[sub + i];
        }
        out[0] = ds[mine]; out[1] = ds[mine] >> 8; out[2] = dmins[mine]; out[3] = dmins[mine] >> 8;
        for (int i = 0; i < 12; i++) out[4 + i] = packed_scales(six, six + 8, i / 4) >> 8 * (i % 4);
    }
}
