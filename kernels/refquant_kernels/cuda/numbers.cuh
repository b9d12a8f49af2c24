// numbers.cuh: float16 and bfloat16 without NVIDIA's headers, which a machine without a CUDA toolkit may not have.
//
// Half-precision numbers are 16-bit patterns here; two of them share a 32-bit register, the first in its low half.

#pragma once

typedef unsigned short f16;
typedef unsigned short bf16;

__device__ __forceinline__ float from_f16(f16 h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}

__device__ __forceinline__ f16 to_f16(float f) {  // nearest, ties to even
    f16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

__device__ __forceinline__ float from_bf16(bf16 b) { return __uint_as_float((unsigned)b << 16); }

__device__ __forceinline__ bf16 to_bf16(float f) {
    bf16 b;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(b) : "f"(f));
    return b;
}

__device__ __forceinline__ unsigned sub_f16x2(unsigned a, unsigned b) {  // a - b, both halves
    unsigned d;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

__device__ __forceinline__ unsigned fma_f16x2(unsigned a, unsigned b, unsigned c) {  // a * b + c, both halves
    unsigned d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

__device__ __forceinline__ unsigned both(f16 h) { return h * 0x00010001u; }  // the same number in both halves

// Activations come and results go as f16, bf16 or float: X and Y of a kernel, with IS_BF16 for X.
__device__ __forceinline__ void put(float* to, float value) { *to = value; }
__device__ __forceinline__ void put_half(unsigned short* to, float value, int is_bf16) {
    *to = is_bf16 ? to_bf16(value) : to_f16(value);
}
