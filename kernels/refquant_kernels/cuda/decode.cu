// decode.cu: weights as float32 from the bytes of a file, every format, bit for bit as refquant/formats does it.
//
// Must move, 4096 x 4096, Q4_K:   9,437,184 B in, 67,108,864 B out
// Must do:                        4 operations a weight, rounded one by one (compiled without fused multiply-add)
// Floor at 2.84 TB/s:             27 us, nearly all of it the float32 that are written
//
// v1  a thread a weight           neighbouring threads write neighbouring floats; a byte is read by every thread that
//                                 wants a code of it, from the cache
// v2  a thread four weights       one store of 16 bytes
//
// A function `weight_<format>(block, i)` is the format's definition: weight i of the block that begins there.
//
// compile with: --fmad=false
#include "numbers.cuh"

typedef const unsigned char* bytes;

__device__ __forceinline__ unsigned u16(bytes p) { return p[0] | p[1] << 8; }

__device__ __forceinline__ float half_at(bytes p) {  // NaN keeps its sign and payload
    unsigned h = u16(p);
    if ((h & 0x7fff) > 0x7c00) return __uint_as_float((h & 0x8000) << 16 | 0x7fc00000u | (h & 0x3ff) << 13);
    return from_f16(h);
}

// Code i of a run of bytes in planes of `width` bytes.
__device__ __forceinline__ int plane(bytes p, int i, int bits, int width) {
    int run = width * 8 / bits;
    return p[i / run * width + i % width] >> bits * (i % run / width) & ((1 << bits) - 1);
}

__device__ float weight_q4_0(bytes b, int i) { return half_at(b) * (plane(b + 2, i, 4, 16) - 8); }
__device__ float weight_q4_1(bytes b, int i) { return half_at(b) * plane(b + 4, i, 4, 16) + half_at(b + 2); }
__device__ float weight_q5_0(bytes b, int i) {
    int high = b[2 + i / 8] >> i % 8 & 1;
    return half_at(b) * ((plane(b + 6, i, 4, 16) | high << 4) - 16);
}
__device__ float weight_q5_1(bytes b, int i) {
    int high = b[4 + i / 8] >> i % 8 & 1;
    return half_at(b) * (plane(b + 8, i, 4, 16) | high << 4) + half_at(b + 2);
}
__device__ float weight_q8_0(bytes b, int i) { return half_at(b) * (signed char)b[2 + i]; }

__device__ float weight_q2_k(bytes b, int i) {
    int both = b[i / 16];
    return half_at(b + 80) * (both & 15) * plane(b + 16, i, 2, 32) - half_at(b + 82) * (both >> 4);
}
__device__ float weight_q3_k(bytes b, int i) {
    int j = i / 16, code = plane(b + 32, i, 2, 32) | plane(b, i, 1, 32) << 2;
    int scale = plane(b + 96, j, 4, 8) | plane(b + 104, j, 2, 4) << 4;
    return half_at(b + 108) * (scale - 32) * (code - 4);
}
// Scale (first = 4) or minimum (first = 8) j of Q4_K and Q5_K.
__device__ int six_bits(bytes b, int j, int first) {
    if (j < 4) return b[first + j] & 63;
    int low = first == 4 ? b[8 + j] & 15 : b[8 + j] >> 4;
    return low | b[first + j - 4] >> 6 << 4;
}
__device__ float weight_q4_k(bytes b, int i) {
    int code = plane(b + 16, i, 4, 32);
    return half_at(b) * six_bits(b, i / 32, 4) * code - half_at(b + 2) * six_bits(b, i / 32, 8);
}
__device__ float weight_q5_k(bytes b, int i) {
    int code = plane(b + 48, i, 4, 32) | plane(b + 16, i, 1, 32) << 4;
    return half_at(b) * six_bits(b, i / 32, 4) * code - half_at(b + 2) * six_bits(b, i / 32, 8);
}
__device__ float weight_q6_k(bytes b, int i) {
    int code = plane(b, i, 4, 64) | plane(b + 128, i, 2, 32) << 4;
    return half_at(b + 208) * (signed char)b[192 + i / 16] * (code - 32);
}

__constant__ signed char IQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
__constant__ signed char E2M1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};  // doubled

__device__ float weight_iq4_nl(bytes b, int i) { return half_at(b) * IQ4[plane(b + 2, i, 4, 16)]; }
__device__ float weight_iq4_xs(bytes b, int i) {
    int j = i / 32, scale = (b[4 + j / 2] >> 4 * (j % 2) & 15) | (b[2 + j / 4] >> 2 * (j % 4) & 3) << 4;
    return half_at(b) * (scale - 32) * IQ4[plane(b + 8, i, 4, 16)];
}
__device__ float weight_mxfp4(bytes b, int i) {
    unsigned e = b[0];
    return __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23) * E2M1[plane(b + 1, i, 4, 16)];
}
__device__ float weight_tq1_0(bytes b, int i) {
    int at = i < 160 ? i % 32 : i < 240 ? 32 + (i - 160) % 16 : 48 + (i - 240) % 4;
    int t = i < 160 ? i / 32 : i < 240 ? (i - 160) / 16 : (i - 240) / 4;
    unsigned power = t == 0 ? 1 : t == 1 ? 3 : t == 2 ? 9 : t == 3 ? 27 : 81;
    return half_at(b + 52) * ((int)((b[at] * power & 255) * 3 >> 8) - 1);
}
__device__ float weight_tq2_0(bytes b, int i) { return half_at(b + 64) * (plane(b, i, 2, 32) - 1); }
__device__ float weight_f32(bytes b, int i) { return __uint_as_float(u16(b) | u16(b + 2) << 16); }
__device__ float weight_f16(bytes b, int i) { return half_at(b); }
__device__ float weight_bf16(bytes b, int i) { return __uint_as_float(u16(b) << 16); }

// The first rung, for one format.
extern "C" __global__ void decode_q4_k_v1(const unsigned char* blocks, float* out, long long count) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) out[i] = weight_q4_k(blocks + i / 256 * 144, i % 256);
}

template <int WEIGHTS, int BYTES, float (*WEIGHT)(bytes, int)>
__device__ __forceinline__ void decode(bytes blocks, float* out, long long count) {
    long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i + 4 <= count) {
        float4 four;
        four.x = WEIGHT(blocks + i / WEIGHTS * BYTES, i % WEIGHTS);
        four.y = WEIGHT(blocks + (i + 1) / WEIGHTS * BYTES, (i + 1) % WEIGHTS);
        four.z = WEIGHT(blocks + (i + 2) / WEIGHTS * BYTES, (i + 2) % WEIGHTS);
        four.w = WEIGHT(blocks + (i + 3) / WEIGHTS * BYTES, (i + 3) % WEIGHTS);
        *(float4*)(out + i) = four;
    } else {
        for (; i < count; i++) out[i] = WEIGHT(blocks + i / WEIGHTS * BYTES, i % WEIGHTS);
    }
}

// Four weights a thread; `out` on a boundary of 16 bytes.
extern "C" __global__ void decode_q4_0(const unsigned char* blocks, float* out, long long count) { decode<32, 18, weight_q4_0>(blocks, out, count); }
extern "C" __global__ void decode_q4_1(const unsigned char* blocks, float* out, long long count) { decode<32, 20, weight_q4_1>(blocks, out, count); }
extern "C" __global__ void decode_q5_0(const unsigned char* blocks, float* out, long long count) { decode<32, 22, weight_q5_0>(blocks, out, count); }
extern "C" __global__ void decode_q5_1(const unsigned char* blocks, float* out, long long count) { decode<32, 24, weight_q5_1>(blocks, out, count); }
extern "C" __global__ void decode_q8_0(const unsigned char* blocks, float* out, long long count) { decode<32, 34, weight_q8_0>(blocks, out, count); }
extern "C" __global__ void decode_q2_k(const unsigned char* blocks, float* out, long long count) { decode<256, 84, weight_q2_k>(blocks, out, count); }
extern "C" __global__ void decode_q3_k(const unsigned char* blocks, float* out, long long count) { decode<256, 110, weight_q3_k>(blocks, out, count); }
extern "C" __global__ void decode_q4_k(const unsigned char* blocks, float* out, long long count) { decode<256, 144, weight_q4_k>(blocks, out, count); }
extern "C" __global__ void decode_q5_k(const unsigned char* blocks, float* out, long long count) { decode<256, 176, weight_q5_k>(blocks, out, count); }
extern "C" __global__ void decode_q6_k(const unsigned char* blocks, float* out, long long count) { decode<256, 210, weight_q6_k>(blocks, out, count); }
extern "C" __global__ void decode_iq4_nl(const unsigned char* blocks, float* out, long long count) { decode<32, 18, weight_iq4_nl>(blocks, out, count); }
extern "C" __global__ void decode_iq4_xs(const unsigned char* blocks, float* out, long long count) { decode<256, 136, weight_iq4_xs>(blocks, out, count); }
extern "C" __global__ void decode_mxfp4(const unsigned char* blocks, float* out, long long count) { decode<32, 17, weight_mxfp4>(blocks, out, count); }
extern "C" __global__ void decode_tq1_0(const unsigned char* blocks, float* out, long long count) { decode<256, 54, weight_tq1_0>(blocks, out, count); }
extern "C" __global__ void decode_tq2_0(const unsigned char* blocks, float* out, long long count) { decode<256, 66, weight_tq2_0>(blocks, out, count); }
extern "C" __global__ void decode_f32(const unsigned char* blocks, float* out, long long count) { decode<1, 4, weight_f32>(blocks, out, count); }
extern "C" __global__ void decode_f16(const unsigned char* blocks, float* out, long long count) { decode<1, 2, weight_f16>(blocks, out, count); }
extern "C" __global__ void decode_bf16(const unsigned char* blocks, float* out, long long count) { decode<1, 2, weight_bf16>(blocks, out, count); }

// Code i of a dense stream of `bits` bits (formats/bits.py).
__device__ __forceinline__ int stream(bytes p, long long i, int bits) {
    long long at = i * bits;
    int shift = at & 7;
    unsigned word = p[at >> 3];
    if (shift + bits > 8) word |= p[(at >> 3) + 1] << 8;
    return word >> shift & ((1 << bits) - 1);
}

// Uniform grids: a thread a weight. A row of codes and one of zero-points begins at a byte. `zeros` and `g_idx` are not
// read when `sym` and `plain`.
extern "C" __global__ void decode_int(const unsigned char* codes, const float* scales, const unsigned char* zeros,
                                      const int* g_idx, float* out, int k, int group, int bits, int sym, int plain,
                                      long long count) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    long long row = i / k;
    int j = i % k, groups = (k + group - 1) / group, g = plain ? j / group : g_idx[j];
    float zero = sym ? 1 << (bits - 1) : stream(zeros + row * ((groups * bits + 7) / 8), g, bits);
    float code = stream(codes + row * (((long long)k * bits + 7) / 8), j, bits);
    out[i] = (code - zero) * scales[row * groups + g];
}

// Codebooks: weight = table[code] * scale; a scale for `group` columns. bits 8; 4; -4: first code high.
extern "C" __global__ void decode_levels(const unsigned char* codes, const float* table, const float* scales, float* out,
                                         int k, int group, int bits, long long count) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    long long row = i / k;
    int j = i % k, byte = codes[bits == 8 ? i : i / 2], code = byte;
    if (bits != 8) code = ((i & 1) == (bits > 0)) ? byte >> 4 : byte & 15;
    out[i] = table[code] * scales[row * ((k + group - 1) / group) + j / group];
}

// LLM.int8: (code * largest of the row) / 127.
extern "C" __global__ void decode_rows(const signed char* codes, const float* largest, float* out, int k, float inverse,
                                       long long count) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) out[i] = codes[i] * largest[i / k] * inverse;
}
