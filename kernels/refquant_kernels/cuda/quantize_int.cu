// quantize to the uniform grids, `int4-g128` and its relatives: round to nearest (RTN), as `methods.rtn`.
//
// 4096 x 4096 weights, int4-g128. Must move: 67,108,864 bytes in, 8,716,288 out; at 2835 GB/s (H100) 27 us. Must do: two
// comparisons, a division and some 8 other operations a weight, 25 in all: 14 us at 29.6 T/s. The memory is the floor.
//
//     v1   `fit`, a warp a group, finds scale and zero-point; `encode`, a thread a weight, reads everything again and
//          writes a byte a code; `pack`, a thread a byte of the result, puts the codes together. Any width, group and
//          number of bits. Moves 67 + 67 + 17 + 17 + 8 MB: 2.3 times the least.
//     v2   `quantize_groups`: a thread takes 4 neighbours in one load; 8, 16 or 32 threads are a group of 32, 64 or 128
//          and learn its range from each other by shuffles; the 4 codes leave as one byte, two or four. Reads once,
//          writes once. For groups of these sizes that divide the row, and 2, 4 or 8 bits.
//
// `round_groups` is `encode` and the decoder in one: what rounding makes of the weights, for AWQ's search.
//
// compile with: --fmad=false

#include "int_grid.cuh"

// Scale and zero-point [n, G] of groups of `size` in the rows of w [n, k]; the last of a row may be short. A warp each.
extern "C" __global__ void fit(const float* w, long long n, int k, int size, int bits, int symmetric, int half,
                               float* scales, float* zeros) {
    int per_row = (k + size - 1) / size, lane = threadIdx.x % 32;
    i64 group = ((i64)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    bool exists = group < n * per_row;
    i64 row = exists ? group / per_row : 0;
    int start = exists ? (int)(group % per_row) * size : 0, end = min(start + size, k);
    float low = 0.0f, high = 0.0f;  // the range is widened to contain 0 anyway
    for (int i = start + lane; i < end; i += 32) {
        low = fminf(low, w[row * k + i]);
        high = fmaxf(high, w[row * k + i]);
    }
    warp_range(low, high, 32);
    if (!exists || lane) return;
    Scale s = fit_range(low, high, bits, symmetric, half);
    scales[group] = s.scale;
    zeros[group] = s.zero;
}

// `encode`, `round_groups`, `pack`: a block takes up to SPAN neighbours of one row, so that no thread divides 64-bit
// numbers to find its row; blockIdx.x counts the spans of all rows.
#define SPAN 1024

// Codes [n, k], a byte each.
extern "C" __global__ void encode(const float* w, const float* scales, const float* zeros, int k, int size, int bits,
                                  unsigned char* codes) {
    int spans = (k + SPAN - 1) / SPAN, groups = (k + size - 1) / size, row = blockIdx.x / spans;
    int start = blockIdx.x % spans * SPAN, end = min(start + SPAN, k);
    for (int i = start + threadIdx.x; i < end; i += blockDim.x) {
        i64 at = (i64)row * k + i, group = (i64)row * groups + i / size;
        codes[at] = (u8)code_of(w[at], {scales[group], zeros[group]}, (float)((1 << bits) - 1));
    }
}

// What is left of the weights: (code - zero) * scale.
extern "C" __global__ void round_groups(const float* w, const float* scales, const float* zeros, int k, int size, int bits,
                                        float* out) {
    int spans = (k + SPAN - 1) / SPAN, groups = (k + size - 1) / size, row = blockIdx.x / spans;
    int start = blockIdx.x % spans * SPAN, end = min(start + SPAN, k);
    for (int i = start + threadIdx.x; i < end; i += blockDim.x) {
        i64 at = (i64)row * k + i, group = (i64)row * groups + i / size;
        Scale s = {scales[group], zeros[group]};
        out[at] = (code_of(w[at], s, (float)((1 << bits) - 1)) - s.zero) * s.scale;
    }
}

// The rows of codes [n, k] as dense streams of `bits`, least significant bit first: see `formats.bits`.
extern "C" __global__ void pack(const unsigned char* codes, int k, int bits, unsigned char* out) {
    int bytes = (int)(((i64)k * bits + 7) / 8), spans = (bytes + SPAN - 1) / SPAN, row = blockIdx.x / spans;
    int start = blockIdx.x % spans * SPAN, end = min(start + SPAN, bytes);
    const u8* from = codes + (i64)row * k;
    for (int i = start + threadIdx.x; i < end; i += blockDim.x) {
        u32 value = 0;
        for (int j = 8 * i / bits; j < k && j * bits < 8 * i + 8; j++) {
            int shift = j * bits - 8 * i;
            value |= shift < 0 ? (u32)from[j] >> -shift : (u32)from[j] << shift;
        }
        out[(i64)row * bytes + i] = (u8)value;
    }
}

// v2. `size` 32, 64 or 128; bits 2, 4 or 8; `scales` are float16, `zeros` a byte each.
extern "C" __global__ void quantize_groups(const float* w, long long groups, int size, int bits, int symmetric,
                                           unsigned char* codes, unsigned short* scales, unsigned char* zeros) {
    int lanes = size / 4;
    i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x, group = i / lanes;
    float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (group < groups) v = *(const float4*)(w + 4 * i);
    float low = fminf(fminf(v.x, v.y), fminf(v.z, v.w)), high = fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w));
    warp_range(low, high, lanes);
    if (group >= groups) return;
    Scale s = fit_range(low, high, bits, symmetric, true);
    float top = (float)((1 << bits) - 1);
    u32 value = (u32)code_of(v.x, s, top) | (u32)code_of(v.y, s, top) << bits | (u32)code_of(v.z, s, top) << 2 * bits |
                (u32)code_of(v.w, s, top) << 3 * bits;
    if (bits == 2) codes[i] = (u8)value;
    if (bits == 4) ((u16*)codes)[i] = (u16)value;
    if (bits == 8) ((u32*)codes)[i] = value;
    if (i % lanes == 0) {
        scales[group] = (u16)to_float16(s.scale);
        zeros[group] = (u8)s.zero;
    }
}
