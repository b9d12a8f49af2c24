// int8.cu: LLM.int8's product around `torch._int_mm`, which multiplies the integers: without waiting for the GPU, in four
// launches where single operations of torch need some twenty-five and have to know how many columns are outliers.
//
//     flag      which columns have a token that reaches the threshold, rounded to float16       m k x 4 B read
//     encode    a token's largest magnitude but for outliers, and its codes; outliers' columns 0    the same, k codes written
//     list      the flagged columns, in order, and how many
//     finish    y = integers * (largest * SCB) / 127^2 + outliers' columns in float32           8 m n B, and the columns
//
// compile with: --fmad=false

#include "arithmetic.cuh"

__device__ inline float as_half(float v) { return from_float16(to_float16(v)); }
__device__ inline bool is_large(float v, float threshold) { return threshold > 0.0f && fabsf(as_half(v)) >= threshold; }

// flags [k], 0 before. A thread a number of x [m, k].
extern "C" __global__ void flag(const float* x, long long count, int k, float threshold, int* flags) {
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count && is_large(x[i], threshold)) flags[i % k] = 1;
}

// codes [at least m, k], largest [m]. A block of 256 threads a row; rows from m on become 0.
extern "C" __global__ void encode_tokens(const float* x, const int* flags, int m, int k, float threshold, float levels,
                                         signed char* codes, float* largest) {
    __shared__ float parts[8];
    int row = blockIdx.x, thread = threadIdx.x;
    signed char* to = codes + (i64)row * k;
    if (row >= m) {
        for (int i = thread; i < k; i += 256) to[i] = 0;
        return;
    }
    const float* from = x + (i64)row * k;
    float most = 0.0f;
    for (int i = thread; i < k; i += 256)
        if (!is_large(from[i], threshold)) most = fmaxf(most, fabsf(as_half(from[i])));
    for (int step = 16; step; step /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
    if (thread % 32 == 0) parts[thread / 32] = most;
    __syncthreads();
    for (int i = 0; i < 8; i++) most = fmaxf(most, parts[i]);
    if (thread == 0) largest[row] = most;
    float factor = levels * reciprocal(most);
    for (int i = thread; i < k; i += 256)
        to[i] = flags[i] ? 0 : (signed char)nearest_within(as_half(from[i]) * factor, -levels, levels);
}

// columns [k]: the flagged ones, in order, in front; count [1]. One block of 256 threads, each with its part of k.
extern "C" __global__ void list_columns(const int* flags, int k, int* columns, int* count) {
    __shared__ int found[256];
    int thread = threadIdx.x, each = (k + 255) / 256, first = thread * each, last = min(k, first + each), mine = 0, at = 0;
    for (int i = first; i < last; i++) mine += flags[i];
    found[thread] = mine;
    __syncthreads();
    for (int i = 0; i < thread; i++) at += found[i];
    if (thread == 255) *count = at + mine;
    for (int i = first; i < last; i++)
        if (flags[i]) columns[at++] = i;
}

// integers [at least m, width], y [m, n]. A block of 256 threads: 64 outputs of 16 tokens; blockIdx.x counts outputs.
extern "C" __global__ void finish(const int* integers, const float* x, const signed char* CB, const float* SCB,
                                  const float* largest, const int* columns, const int* count, float constant,
                                  float level, float* y, int m, int n, int k, int width) {
    __shared__ float weights[16][64], tokens[16][16];  // of 16 outlier columns
    int thread = threadIdx.x, output = thread % 64, row = blockIdx.x * 64 + output, four = thread / 64;
    int first = blockIdx.y * 16, outliers = *count;
    float sums[4] = {};
    for (int begin = 0; begin < outliers; begin += 16) {
        __syncthreads();
        for (int c = four; c < 16; c += 4)
            weights[c][output] =
                begin + c < outliers && row < n ? (float)CB[(i64)row * k + columns[begin + c]] * SCB[row] * level : 0.0f;
        int token = first + thread % 16, c = thread / 16;
        tokens[c][thread % 16] = begin + c < outliers && token < m ? x[(i64)token * k + columns[begin + c]] : 0.0f;
        __syncthreads();
        for (int c = 0; c < min(16, outliers - begin); c++)
            for (int i = 0; i < 4; i++) sums[i] += tokens[c][4 * i + four] * weights[c][output];
    }
    for (int i = 0; i < 4; i++) {
        int token = first + 4 * i + four;
        if (token >= m || row >= n) continue;
        float whole = (float)integers[(i64)token * width + row] * (largest[token] * SCB[row]) * constant;
        y[(i64)token * n + row] = whole + sums[i];
    }
}
