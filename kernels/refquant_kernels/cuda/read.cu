// read.cu: how fast this GPU reads its memory: the ceiling that the other kernels are held against.
//
// Must move: `count` x 16 B. Every thread adds up 16-byte pieces, eight loads in flight; the sum is stored where it
// happens to be a number that it hardly ever is, so that no load can be left out.
#include "numbers.cuh"

extern "C" __global__ void read_all(const uint4* data, unsigned* out, long long count) {
    unsigned sum = 0;
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x, step = (long long)gridDim.x * blockDim.x;
#pragma unroll 8
    for (; i < count; i += step) {
        uint4 v = __ldcs(data + i);
        sum += v.x ^ v.y ^ v.z ^ v.w;
    }
    if (sum == 0x12345678) out[0] = sum;
}
