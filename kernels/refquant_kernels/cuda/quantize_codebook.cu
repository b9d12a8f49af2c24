// quantize to NF4 and FP8, the codes: the nearest of sixteen levels, and a cast to a float of 8 bits.
//
// 4096 x 4096 weights. Must move: 67,108,864 bytes in; out 9,437,184 (NF4, absmax in float32), 16,777,216 (FP8); at 2835
// GB/s (H100) 27 and 30 us. NF4 must do 15 comparisons and additions a weight, so 40 operations: 23 us, near the floor
// of its bytes. FP8 reads the weights twice: once for the maxima (torch), once to cast.
//
// NF4: a warp a block. Each thread holds two neighbours, so a byte of the result, of each 64 weights.
// FP8: a thread 4 neighbours, rounded in the bits of the float32: the last kept place is that of a normal number, or the
// fixed one of the subnormal ones, which adding a large enough power of two rounds to.
//
// compile with: --fmad=false

#include "arithmetic.cuh"

__constant__ float MIDDLES[15] = {  // between neighbours of `codebooks.NF4`
    -0.848096371f, -0.610632896f, -0.45999527f, -0.33967942f, -0.234607399f, -0.137911737f, -0.0455250181f,
    0.0397901498f, 0.120255247f, 0.203521252f, 0.292013764f, 0.389312536f, 0.501663446f, 0.64278692f,
    0.861478448f};

__device__ inline u32 nf4_code(float v) {
    u32 code = 0;
#pragma unroll
    for (int m = 0; m < 15; m++) code += MIDDLES[m] < v;
    return code;
}

// `count` weights in blocks of `size`, a multiple of 32. The code of a weight is the number of middles below it. codes:
// two a byte, the first in the high half; after an odd count, the 7 that a zero would get.
extern "C" __global__ void nf4(const float* w, long long count, int size, unsigned char* codes, float* absmax) {
    int lane = threadIdx.x % 32;
    i64 block = ((i64)blockIdx.x * blockDim.x + threadIdx.x) / 32, start = block * size;
    i64 end = min(start + size, count);
    float2 v = {0.0f, 0.0f};
    float largest = 0.0f;
    for (i64 i = start + 2 * lane; i < end; i += 64) {
        if (i + 1 < end) {
            v = *(const float2*)(w + i);
        } else {
            v.x = w[i];
            v.y = 0.0f;
        }
        largest = fmaxf(largest, fmaxf(fabsf(v.x), fabsf(v.y)));
    }
    for (int other = 16; other; other /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, other));
    if (start >= count) return;
    if (lane == 0) absmax[block] = largest;
    float inverse = 1.0f / fmaxf(largest, 1e-38f);
    for (i64 i = start + 2 * lane; i < end; i += 64) {
        if (size > 64) {  // else what was read above is still there
            v.x = w[i];
            v.y = i + 1 < end ? w[i + 1] : 0.0f;
        }
        codes[i / 2] = (u8)(nf4_code(v.x * inverse) << 4 | nf4_code(v.y * inverse));
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

// Codes, a byte each, of w [n, k] / scales [ceil(n / rows), ceil(k / columns)]. A block takes up to 1024 neighbours of one
// row, a thread 4 of them, at once where rows begin on a boundary of 16 bytes.
extern "C" __global__ void fp8(const float* w, const float* scales, int k, int rows, int columns, int fraction, int bias,
                               int largest, int negative_zero, unsigned char* codes) {
    int spans = (k + 1023) / 1024, row = blockIdx.x / spans, i = blockIdx.x % spans * 1024 + 4 * threadIdx.x;
    i64 at = (i64)row * k + i;
    scales += (i64)(row / rows) * ((k + columns - 1) / columns);
    if (k % 4 == 0 && columns % 4 == 0) {
        if (i >= k) return;
        float4 v = *(const float4*)(w + at);
        float scale = scales[i / columns];
        u32 a = small_float(v.x / scale, fraction, bias, (u32)largest, 7, negative_zero);
        u32 b = small_float(v.y / scale, fraction, bias, (u32)largest, 7, negative_zero);
        u32 c = small_float(v.z / scale, fraction, bias, (u32)largest, 7, negative_zero);
        u32 d = small_float(v.w / scale, fraction, bias, (u32)largest, 7, negative_zero);
        *(u32*)(codes + at) = a | b << 8 | c << 16 | d << 24;
    } else {
        for (int j = i; j < min(i + 4, k); j++, at++)
            codes[at] = (u8)small_float(w[at] / scales[j / columns], fraction, bias, (u32)largest, 7, negative_zero);
    }
}
