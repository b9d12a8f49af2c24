// quantize to NF4 and FP8, the codes: the nearest of sixteen levels, and a cast to a float of 8 bits.
//
// 4096 x 4096 weights. Must move: 67,108,864 bytes in; out 9,437,184 (NF4, absmax in float32), 16,777,216 (FP8); at 2835
// GB/s (H100) 27 and 30 us. NF4 must do 15 comparisons and additions a weight, so 40 operations: 23 us, near the floor
// of its bytes. FP8 reads the weights twice where a scale belongs to a whole row: once for the maximum, once to cast.
//
// NF4: a warp a block. Each thread holds two neighbours, so a byte of the result, of each 64 weights.
// FP8: a thread 4 neighbours, rounded in the bits of the float32: the last kept place is that of a normal number, or the
// fixed one of the subnormal ones, which adding a large enough power of two rounds to.
//
// compile with: --fmad=false

#include "arithmetic.cuh"

// `count` weights in blocks of `size`, a multiple of 32; `middles` are the 15 points between the levels. The code of a
// weight is the number of middles below it. codes: two a byte, the first in the high half; after an odd count, a 7.
extern "C" __global__ void nf4(const float* w, const float* middles, long long count, int size, unsigned char* codes,
                               float* absmax) {
    int lane = threadIdx.x % 32;
    i64 block = ((i64)blockIdx.x * blockDim.x + threadIdx.x) / 32, start = block * size;
    i64 end = min(start + size, count);
    float largest = 0.0f;
    for (i64 i = start + lane; i < end; i += 32) largest = fmaxf(largest, fabsf(w[i]));
    for (int other = 16; other; other /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, other));
    if (start >= count) return;
    if (lane == 0) absmax[block] = largest;
    float inverse = 1.0f / fmaxf(largest, 1e-38f);
    for (i64 i = start + 2 * lane; i < end; i += 64) {
        u32 byte = 0;
        for (int half = 0; half < 2; half++) {
            float v = i + half < count ? w[i + half] * inverse : 0.0f;
            u32 code = 0;
#pragma unroll
            for (int m = 0; m < 15; m++) code += middles[m] < v;
            byte = byte << 4 | code;
        }
        codes[i / 2] = (u8)byte;
    }
}

// The nearest float of 1 + E + F bits, ties to even, saturated at the code `largest`; see `codebooks.SmallFloat`.
__device__ inline u32 small_float(float v, int fraction, int bias, u32 largest, int sign_bit, bool negative_zero) {
    u32 bits = __float_as_uint(v), size = bits & 0x7FFFFFFF;
    int drop = 23 - fraction;
    u32 code;
    if (size >= (u32)(128 - bias) << 23) {  // normal there
        code = ((size + ((1u << (drop - 1)) - 1) + (size >> drop & 1)) >> drop) - ((127 - bias) << fraction);
    } else {
        float unit = __uint_as_float((u32)(127 + 24 - bias - fraction) << 23);  // 2^23 of the smallest steps
        code = __float_as_uint(__uint_as_float(size) + unit) - __float_as_uint(unit);
    }
    code = code < largest ? code : largest;
    bool negative = (bits >> 31) && (negative_zero || code);
    return code | (u32)negative << sign_bit;
}

// Codes, a byte each, of w [n, k] / scales [ceil(n / rows), ceil(k / columns)].
extern "C" __global__ void fp8(const float* w, const float* scales, long long n, int k, int rows, int columns, int fraction,
                               int bias, int largest, int negative_zero, unsigned char* codes) {
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n * k) return;
    float scale = scales[i / k / rows * ((k + columns - 1) / columns) + i % k / columns];
    codes[i] = (u8)small_float(w[i] / scale, fraction, bias, (u32)largest, 7, negative_zero);
}
