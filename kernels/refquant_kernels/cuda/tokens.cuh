// tokens.cuh: what the products do alike with activations (X, with IS_BF16) and results (Y).
//
// bfloat16 activations become float16 with a power of two for each token, which is exact for all that lies within 2^-29
// of the largest (and in float32's last bits for the rest), so that one kind of tensor-core instruction serves both.

#pragma once
#include "numbers.cuh"
#include "overlap.cuh"

#ifndef Y
#define Y float
#endif
#ifndef ADD
#define ADD 0
#endif

__device__ __forceinline__ void store(Y* y, float value) {
#if ADD
    *y += value;
#elif defined(Y_HALF)
    put_half(y, value, IS_BF16);
#else
    put(y, value);
#endif
}

// The power of two that brings a bfloat16, whose bits but for the sign are `largest`, between 2^14 and 2^15; `back` undoes
// it. 1 for zero, infinity and NaN.
__device__ __forceinline__ float power_for(unsigned largest, float& back) {
    int e = largest >> 7;
    e = largest == 0 || e == 255 ? 127 : min(max(14 + 127 - e + 127, 1), 253);
    back = __uint_as_float((unsigned)(254 - e) << 23);
    return __uint_as_float((unsigned)e << 23);
}

// How a kernel that prepares a token [k] begins, a block of 256 threads: its power of two, undone by `back`.
__device__ __forceinline__ float begin_token(const X* from, int k, bool there, float* back) {
    let_next_begin();
    wait_for_previous();
    float factor = 1;
#if IS_BF16
    __shared__ unsigned all[8];
    unsigned largest = 0;
    for (int i = threadIdx.x; there && i < k; i += 256) largest = max(largest, from[i] & 0x7fffu);
    largest = __reduce_max_sync(~0u, largest);
    if (threadIdx.x % 32 == 0) all[threadIdx.x / 32] = largest;
    __syncthreads();
    for (int i = 0; i < 8; i++) largest = max(largest, all[i]);
    float undo;
    factor = power_for(largest, undo);
    if (threadIdx.x == 0) *back = undo;
#endif
    return factor;
}
