// gptq on uniform grids, the loop within a block of columns: `methods.gptq`, all rows side by side.
//
// 4096 x 4096 weights, blocks of 128 columns. Must do: within the blocks 2.1 G multiplications and as many subtractions,
// 16.8 M divisions twice: under a millisecond. Around them one product a block, 69 GFLOP in float32 altogether, 1.4 ms at
// 50 T/s, and in float64 the factor, 23 GFLOP (Cholesky) and 23 to 69 (triangular inverse): those are cuBLAS's and
// cuSOLVER's. Launched column by column, as the published code does it, it is 4096 times a dozen kernels of 5 us each.
//
// The rows do not depend on each other, the columns of a row do: column j + 1 needs the error of column j. So a warp
// takes a row and goes through all columns of the block in one launch. Each thread keeps 4 of the 128 columns in
// registers; the weight whose turn it is goes to all by one shuffle, all compute its code and error (nobody waits for an
// answer), and each moves its own columns. A row of the factor is read by all warps at about the same time, from L1.
// The code is computed 32 times over that way: a column takes a warp some 60 instructions, two divisions among them, and
// 31 rows share a multiprocessor, so that a block takes 78 us, 2.5 ms in all. Half a dozen instructions of the 60 would
// be the least; but the factor and the products take longer still.
//
// compile with: --fmad=false

#include "int_grid.cuh"

#define SLOTS 4  // columns of a thread: a block has at most 32 * SLOTS

// Columns i1 .. i2 - 1 of W [n, k], at most 128. U [k, k], upper. groups [k]: the group of each column. fit_ends [k]:
// for a column at which a group is to be fitted to what the weights are by then, the end of the group, at most i2; else
// 0. scales, zeros [G, n]: read for the other groups, written for those. Written: codes [n, k], errors [n, 128].
extern "C" __global__ void gptq_block(const float* W, const float* U, const int* groups, const int* fit_ends, int n, int k,
                                      int i1, int i2, int bits, int symmetric, int half, float* scales, float* zeros,
                                      unsigned char* codes, float* errors) {
    int lane = threadIdx.x % 32, row = (int)(((i64)blockIdx.x * blockDim.x + threadIdx.x) / 32);
    if (row >= n) return;  // whole warps
    float top = (float)((1 << bits) - 1), w[SLOTS], error[SLOTS];
    u32 code[SLOTS];
#pragma unroll
    for (int c = 0; c < SLOTS; c++) {
        int column = i1 + 32 * c + lane;
        w[c] = column < i2 ? W[(i64)row * k + column] : 0.0f;
        error[c] = 0.0f;
        code[c] = 0;
    }
    Scale s = {1.0f, 0.0f};
    int group = -1;
#pragma unroll
    for (int turn = 0; turn < SLOTS; turn++) {
        for (int l = 0; l < 32; l++) {
            int j = i1 + 32 * turn + l;
            if (j >= i2) break;
            int end = fit_ends[j];
            if (end) {
                float low = 0.0f, high = 0.0f;
#pragma unroll
                for (int c = turn; c < SLOTS; c++) {
                    int column = i1 + 32 * c + lane;
                    if (column >= j && column < end) {
                        low = fminf(low, w[c]);
                        high = fmaxf(high, w[c]);
                    }
                }
                warp_range(low, high, 32);
                s = fit_range(low, high, bits, symmetric, half);
                group = groups[j];
                if (lane == 0) {
                    scales[(i64)group * n + row] = s.scale;
                    zeros[(i64)group * n + row] = s.zero;
                }
            } else if (groups[j] != group) {
                group = groups[j];
                s = {scales[(i64)group * n + row], zeros[(i64)group * n + row]};
            }
            const float* u = U + (i64)j * k;
            float own = __shfl_sync(~0u, w[turn], l), rounded = code_of(own, s, top);
            float err = (own - (rounded - s.zero) * s.scale) / u[j];
            if (lane == l) {
                code[turn] = (u32)rounded;
                error[turn] = err;
            }
#pragma unroll
            for (int c = turn; c < SLOTS; c++) {
                int column = i1 + 32 * c + lane;
                if (column < i2) w[c] = w[c] - err * u[column];  // left of j, U is 0
            }
        }
    }
#pragma unroll
    for (int c = 0; c < SLOTS; c++) {
        int column = i1 + 32 * c + lane;
        if (column < i2) codes[(i64)row * k + column] = (u8)code[c];
        errors[(i64)row * 32 * SLOTS + 32 * c + lane] = error[c];
    }
}
