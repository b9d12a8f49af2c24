// The uniform grids' arithmetic, as `grids.IntGrid` has it: scale and zero-point of a group, and a weight's code.
#pragma once
#include "arithmetic.cuh"

struct Scale {
    float scale, zero;
};

// Scale and zero-point of weights between `low` and `high`; HALF: the scale is kept as float16, which may overflow.
__device__ inline Scale fit_range(float low, float high, int bits, bool symmetric, bool half) {
    float top = (float)((1 << bits) - 1);
    low = fminf(low, 0.0f);
    high = fmaxf(high, 0.0f);
    if (symmetric) {
        high = fmaxf(-low, high);
        low = -high;
    }
    if (low == 0.0f && high == 0.0f) {  // any scale will do
        low = -1.0f;
        high = 1.0f;
    }
    float scale = (high - low) / top;
    if (half) scale = from_float16(to_float16(scale));
    scale = fmaxf(scale, half ? 5.9604645e-8f : 1.4012985e-45f);  // the smallest of each, so that none is 0
    float zero = symmetric ? (float)(1 << (bits - 1)) : rintf(-low / scale);
    return {scale, fminf(fmaxf(zero, 0.0f), top)};
}

// The code of a weight, as a float.
__device__ inline float code_of(float w, Scale s, float top) {
    return fminf(fmaxf(rintf(w / s.scale) + s.zero, 0.0f), top);
}

// Smallest and largest over neighbouring `lanes` threads, a power of two.
__device__ inline void warp_range(float& low, float& high, int lanes) {
    for (int other = lanes / 2; other; other /= 2) {
        low = fminf(low, __shfl_xor_sync(~0u, low, other));
        high = fmaxf(high, __shfl_xor_sync(~0u, high, other));
    }
}
