// Parts of a k-quant block with minima: its scales as integers, the codes for what the file holds, 12 bytes of scales.
#pragma once
#include "searches.cuh"

// Bits of the float16 scale of N scales that are not negative; their integers, as bytes.
template <int N> __device__ inline u32 by_largest(const float* values, int top, int* integers) {
    float peak = 0.0f;
#pragma unroll
    for (int j = 0; j < N; j++) peak = values[j] > peak ? values[j] : peak;
    float inverse = peak > 0.0f ? (float)top / peak : 0.0f;
#pragma unroll
    for (int j = 0; j < N; j++) integers[j] = nearest(inverse * values[j]) & 255;
    return to_float16(peak / (float)top);
}

// Scale or minimum j as the file holds it. Q4_K with importance does not limit what came out negative, a byte above 63:
// its upper bits are read as those of number j + 4.
template <bool SPILLS> __device__ inline int six_bits(const int* integers, int j) {
    int value = integers[j];
    if (!SPILLS) return min(value, 63);
    if (j < 4) return value & 63;
    return (value & 15) | ((value >> 4 & 3) | integers[j - 4] >> 6) << 4;
}

// The codes for the width and offset that the file holds; where the width is 0, those that the search found.
template <int N>
__device__ inline void final_codes(const float* x, float width, float offset, float inverse, float start, float top, int* codes) {
    if (width == 0.0f) {
#pragma unroll
        for (int i = 0; i < N; i++) codes[i] = (int)nearest_within(inverse * (x[i] - start), 0.0f, top);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) codes[i] = clip(nearest((x[i] + offset) / width), 0, (int)top);
    }
}

// Word 0..2 of the 12 bytes that hold 8 scales and 8 minima of 6 bits.
__device__ inline u32 packed_scales(const u8* scales, const u8* mins, int word) {
    u32 value = 0;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        u32 byte = word == 0 ? scales[j] | scales[j + 4] >> 4 << 6
                 : word == 1 ? mins[j] | mins[j + 4] >> 4 << 6
                             : (scales[j + 4] & 15) | mins[j + 4] << 4;
        value |= (byte & 255) << 8 * j;
    }
    return value;
}
