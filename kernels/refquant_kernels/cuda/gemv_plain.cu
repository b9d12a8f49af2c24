// gemv_plain.cu: y = W x for one token, W as `int<bits>-g<group>` files hold it. The first two rungs, for int4.
//
// Must move, 4096 x 4096, int4-g128:   codes 8,388,608 + scales 262,144 + zeros 65,536 + x 8,192 + y 8,192 B
// Must do:                             2 n k = 33.6 MFLOP, so 3.8 FLOP a byte where an H100 has 295 to spend
// Floor at 2.84 TB/s:                  3.1 us (the float16 weights: 11.8 us)
//
// v1  a thread a row             the loads of a warp lie k / 2 bytes apart: each fetches 32 bytes to use one
// v2  a warp a row               lanes read 16 neighbouring bytes each, four loads in flight; float32 products; the
//                                32 sums of a row are added with shuffles. Three instructions a weight to turn a code
//                                into a float32 and one for the product: enough to hold the memory back.
// The next rungs are in gemv.cu: another order of the weights, and the tensor cores.
//
// compile with: -DGROUP=128
#include "numbers.cuh"

extern "C" __global__ void gemv_v1(const unsigned char* codes, const f16* scales, const unsigned char* zeros,
                                   const f16* x, float* y, int n, int k) {
    int row = blockIdx.x * blockDim.x + threadIdx.x, groups = (k + GROUP - 1) / GROUP;
    if (row >= n) return;
    const unsigned char* mine = codes + (long long)row * ((k + 1) / 2);
    float sum = 0;
    for (int j = 0; j < k; j++) {
        int g = j / GROUP;
        int zero = zeros[(long long)row * ((groups + 1) / 2) + g / 2] >> (4 * (g & 1)) & 15;
        int code = mine[j / 2] >> (4 * (j & 1)) & 15;
        sum += (code - zero) * from_f16(scales[(long long)row * groups + g]) * from_f16(x[j]);
    }
    y[row] = sum;
}

// k must be a multiple of GROUP. Four warps a block.
extern "C" __global__ void gemv_v2(const unsigned char* codes, const f16* scales, const unsigned char* zeros,
                                   const f16* x, float* y, int n, int k) {
    int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x & 31, groups = k / GROUP;
    if (row >= n) return;
    const uint4* mine = (const uint4*)(codes + (long long)row * (k / 2));
    float sum = 0;
#pragma unroll 4
    for (int i = lane; i < k / 32; i += 32) {  // 16 bytes: 32 neighbouring weights, of one group
        uint4 w = __ldg(mine + i);
        int g = i * 32 / GROUP;
        int zero = zeros[(long long)row * ((groups + 1) / 2) + g / 2] >> (4 * (g & 1)) & 15;
        unsigned words[4] = {w.x, w.y, w.z, w.w};
        float part = 0;
#pragma unroll
        for (int v = 0; v < 4; v++) {
            uint4 eight = __ldg((const uint4*)x + 4 * i + v);
            unsigned pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
            for (int c = 0; c < 8; c++) {
                int code = words[v] >> (4 * c) & 15;
                part += (code - zero) * from_f16(pairs[c / 2] >> (16 * (c & 1)) & 0xffff);
            }
        }
        sum += part * from_f16(scales[(long long)row * groups + g]);
    }
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (lane == 0) y[row] = sum;
}
