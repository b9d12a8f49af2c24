// A tile: what one thread block of THREADS threads encodes, one sub-block of N weights a thread.
//
// Neighbouring threads read neighbouring 16 bytes of global memory and put them into shared memory; from there each
// takes its own N weights. Sub-blocks are padded with 4 floats, and blocks with 4 more, so that the threads of a quarter
// warp, reading 16 bytes each, meet different banks: whether each reads its own sub-block or its own block.
#pragma once
#include "arithmetic.cuh"

#define THREADS 128

// Where sub-block s begins, of those that have SUBS of them to a block.
template <int N, int SUBS> __device__ inline int tile_at(int s) { return (N + 4) * s + 4 * (s / SUBS); }

template <int N, int SUBS> struct alignas(16) Tile { float x[THREADS * (N + 4) + THREADS / SUBS * 4]; };

// Fill the tile from weight `first` on; past the end of the matrix, `total` weights, with zeros. Ends with a barrier.
template <int N, int SUBS> __device__ inline void load_tile(const float* w, i64 first, i64 total, float* tile) {
    for (int i = threadIdx.x; i < THREADS * N / 4; i += THREADS) {
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (first + 4 * i < total) v = *(const float4*)(w + first + 4 * i);
        *(float4*)(tile + tile_at<N, SUBS>(i / (N / 4)) + i % (N / 4) * 4) = v;
    }
    __syncthreads();
}

// N floats from shared or global memory, 16 bytes at a time.
template <int N> __device__ inline void load_run(const float* from, float* x) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        float4 v = *(const float4*)(from + i);
        x[i] = v.x; x[i + 1] = v.y; x[i + 2] = v.z; x[i + 3] = v.w;
    }
}

// N codes, one a byte, to words[0 .. N / 4 - 1].
template <int N> __device__ inline void store_codes(const int* codes, u32* words) {
#pragma unroll
    for (int i = 0; i < N / 4; i++)
        words[i] = codes[4 * i] & 255 | (codes[4 * i + 1] & 255) << 8 | (codes[4 * i + 2] & 255) << 16 | codes[4 * i + 3] << 24;
}

// ---- planes: `codes` are the codes of a block, one a byte, seen as words W of 4 (u32) or 2 (u16) of them

// Word i of 4-bit codes in planes of `width` bytes.
template <class W> __device__ inline W nibbles(const W* codes, int i, int width) {
    int words = width / (int)sizeof(W), at = i / words * 2 * words + i % words;
    return (W)((codes[at] & (W)0x0F0F0F0F) | (codes[at + words] & (W)0x0F0F0F0F) << 4);
}

// Word i of two bits, from `shift` on, of 256 codes in planes of 32.
template <class W> __device__ inline W pairs(const W* codes, int i, int shift) {
    const int words = 32 / (int)sizeof(W);
    int at = i / words * 4 * words + i % words;
    u32 value = 0;
#pragma unroll
    for (int plane = 0; plane < 4; plane++) value |= ((u32)codes[at + words * plane] >> shift & 0x03030303) << 2 * plane;
    return (W)value;
}

// Word i of one bit of 256 codes in planes of 32.
template <class W> __device__ inline W bits_of(const W* codes, int i, int bit) {
    const int words = 32 / (int)sizeof(W);
    u32 value = 0;
#pragma unroll
    for (int plane = 0; plane < 8; plane++) value |= ((u32)codes[words * plane + i] >> bit & 0x01010101) << plane;
    return (W)value;
}
