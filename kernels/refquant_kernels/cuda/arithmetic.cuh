// Float32 as ggml's C code computes it: what `methods.kquants.arithmetic` is for NumPy. Compile with --fmad=false.
//
// Where NaN is concerned a GPU differs from the x86 processors on which ggml's bytes are made: a GPU's NaN is
// 0x7FFFFFFF, x86's 0xFFC00000. Two functions look at the bits of a float, `nearest` and `to_float16`; both say what
// they make of NaN.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

#define MAGIC 12582912.0f  // 3 * 2^22: between it and its double floats are whole numbers, so adding it rounds
#define EPS 1e-15f         // ggml's GROUP_MAX_EPS
#define INF __int_as_float(0x7F800000)

// Ties to even; beyond 2^22 and for infinity some integer, always the same; NaN gives 0.
__device__ inline int nearest(float v) {
    int i = (__float_as_int(v + MAGIC) & 0x007FFFFF) - 0x00400000;
    return v == v ? i : 0;
}

__device__ inline int clip(int i, int low, int high) { return max(low, min(i, high)); }

// Limited to low..high, then rounded, ties to even; |low|, |high| below 2^22. NaN gives `low`.
__device__ inline float nearest_within(float v, float low, float high) {
    return (fminf(fmaxf(v, low), high) + MAGIC) - MAGIC;
}

// Cut toward zero, the low byte with its sign; 0 beyond 32 bits and for NaN.
__device__ inline int truncated(float v) {
    return (int)(signed char)(int)(fabsf(v) < 2147483648.0f ? v : 0.0f);
}

// C's roundf, for |v| below 2^31; otherwise v.
__device__ inline float round_half_away(float v) {
    if (!(fabsf(v) < 2147483648.0f)) return v;
    float whole = (float)(int)v;
    float one = __int_as_float((__float_as_int(v) & 0x80000000) | 0x3F800000);  // with the sign of v
    return fabsf(v - whole) >= 0.5f ? whole + one : whole;
}

__device__ inline float reciprocal(float d) { return d != 0.0f ? 1.0f / d : 0.0f; }

// The bits of float16, ties to even; 0xC8000FFF is half a last place and 112 exponents less. NaN becomes 0xFE00: x86's NaN is negative, and ggml keeps the sign.
__device__ inline u32 to_float16(float v) {
    u32 bits = __float_as_uint(v), size = bits & 0x7FFFFFFF;
    u32 half = (size + ((size >> 13 & 1) + 0xC8000FFF)) >> 13;
    if (size < 0x38800000) half = __float_as_uint(__uint_as_float(size) + 0.5f) - 0x3F000000;  // last place 2^-24
    if (size >= 0x477FF000) half = 0x7C00;  // 65520 and above: infinity
    return size > 0x7F800000 ? 0xFE00 : (half | (bits >> 16 & 0x8000));
}

// Exact; NaN stays NaN.
__device__ inline float from_float16(u32 half) {
    u32 rest = (half & 0x7FFF) << 13;
    u32 finite = __float_as_uint(__uint_as_float(rest) * 5.192296858534828e33f);  // 2^112: the exponents' bases differ
    return __uint_as_float((rest >= 0x0F800000 ? rest | 0x7F800000 : finite) | (half & 0x8000) << 16);
}

// x[0]^2 + x[1]^2 + ..., from left to right, added to `total`.
template <int N> __device__ inline float sum_of_squares(const float* x, float total = 0.0f) {
#pragma unroll
    for (int i = 0; i < N; i++) total = total + x[i] * x[i];
    return total;
}

// The entry of largest magnitude, with its sign; the first of equals; +0 where all are 0; NaN is passed over.
template <int N> __device__ inline float largest_magnitude(const float* x) {
    float extreme = 0.0f, largest = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) {
        bool larger = fabsf(x[i]) > largest;
        extreme = larger ? x[i] : extreme;
        largest = larger ? fabsf(x[i]) : largest;
    }
    return extreme;
}
