// quantize to TQ1_0 TQ2_0 MXFP4 F16 BF16, byte for byte as `methods.kquants` and ggml: formats without a search.
//
// 4096 x 4096 weights. Must move: 67,108,864 bytes in; out 4,325,376 (TQ2_0), 8,912,896 (MXFP4), 33,554,432 (F16); at
// 2835 GB/s (H100) 25 to 36 us. Must do: 5 operations a weight, 10 for a cast, 35 for MXFP4, which tries 7 values: 20 us.
// The memory is the floor.
//
// One version: TQ1_0, TQ2_0, MXFP4 a thread for 32 weights, in and out through shared memory (`tile.cuh`); the casts a
// thread for 4 neighbours, 16 bytes in and 8 out.

// compile with: --fmad=false

#include "arithmetic.cuh"
#include "tile.cuh"

// ---- TQ1_0, TQ2_0

// Byte m of codes 0..2 from `codes` on, TRITS to a byte, in planes of WIDTH; see `formats.gguf_blocks.ternary`.
template <int TRITS, int WIDTH> __device__ inline u32 trits(const u8* codes, int m) {
    u32 value = 0;
#pragma unroll
    for (int t = 0; t < 5; t++) value = 3 * value + (t < TRITS ? codes[WIDTH * t + m] : 0);
    return (value * 256 + 242) / 243;
}

template <bool DENSE> __device__ inline void quantize_ternary(const float* w, i64 blocks, u8* out) {
    constexpr int BLOCKS = THREADS / 8, HALVES = DENSE ? 27 : 33;
    __shared__ Tile<32, 8> tile;
    __shared__ float largest[THREADS];
    __shared__ u32 codes[THREADS * 8];
    int sub = threadIdx.x, block = sub / 8;
    i64 first = (i64)blockIdx.x * BLOCKS;
    load_tile<32, 8>(w, 256 * first, 256 * blocks, tile.x);
    float x[32], d = 0.0f;
    load_run<32>(tile.x + tile_at<32, 8>(sub), x);
#pragma unroll
    for (int i = 0; i < 32; i++) d = fmaxf(d, fabsf(x[i]));
    largest[sub] = d;
    __syncthreads();
    for (int i = 8 * block; i < 8 * block + 8; i++) d = fmaxf(d, largest[i]);
    float inverse = reciprocal(d);
    int own[32];
#pragma unroll
    for (int i = 0; i < 32; i++) own[i] = truncated(round_half_away(x[i] * inverse)) + 1;
    store_codes<32>(own, codes + 8 * sub);
    __syncthreads();
    largest[sub] = d;
    __syncthreads();

    u16* halves = (u16*)out + HALVES * first;
    for (int i = threadIdx.x; i < BLOCKS * HALVES; i += THREADS) {
        int b = i / HALVES, half = i % HALVES;
        if (first + b >= blocks) break;
        const u8* c = (const u8*)(codes + 64 * b);
        u32 value;
        if (half == HALVES - 1)
            value = to_float16(largest[8 * b]);
        else if (!DENSE)
            value = pairs((const u16*)c, half, 0);
        else if (half < 16)
            value = trits<5, 32>(c, 2 * half) | trits<5, 32>(c, 2 * half + 1) << 8;
        else if (half < 24)
            value = trits<5, 16>(c + 160, 2 * half - 32) | trits<5, 16>(c + 160, 2 * half - 31) << 8;
        else
            value = trits<4, 4>(c + 240, 2 * half - 48) | trits<4, 4>(c + 240, 2 * half - 47) << 8;
        halves[i] = (u16)value;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) tq1_0(const float* w, long long blocks, unsigned char* out) {
    quantize_ternary<true>(w, blocks, out);
}

extern "C" __global__ void __launch_bounds__(THREADS) tq2_0(const float* w, long long blocks, unsigned char* out) {
    quantize_ternary<false>(w, blocks, out);
}

// ---- MXFP4

__constant__ float DOUBLED[8] = {0, 1, 2, 3, 4, 6, 8, 12};

extern "C" __global__ void __launch_bounds__(THREADS) mxfp4(const float* w, long long blocks, unsigned char* out) {
    __shared__ Tile<32, 1> tile;
    __shared__ u32 codes[THREADS * 8];
    __shared__ u8 exponents[THREADS];
    i64 first = (i64)blockIdx.x * THREADS;
    load_tile<32, 1>(w, 32 * first, 32 * blocks, tile.x);
    float x[32], peak = 0.0f;
    load_run<32>(tile.x + tile_at<32, 1>(threadIdx.x), x);
#pragma unroll
    for (int i = 0; i < 32; i++) peak = fmaxf(peak, fabsf(x[i]));
    // The logarithm is a float32, correctly rounded by way of float64: just below a power of two it may be that power's.
    int e = peak > 0.0f ? ((int)floorf((float)log2((double)peak)) + 125) & 255 : 0, own[32];
    float half = __int_as_float(e < 2 ? 0x00200000 << e : (e - 1) << 23);  // of 2^(e - 127); the two smallest subnormal
#pragma unroll
    for (int i = 0; i < 32; i++) {
        float size = fabsf(x[i]), least = size;  // values of the other sign are never nearer than 0
        int code = 0;
#pragma unroll
        for (int value = 1; value < 8; value++) {
            float error = fabsf(DOUBLED[value] * half - size);
            code = error < least ? value : code;
            least = error < least ? error : least;
        }
        if (code && x[i] < 0.0f) code += 8;
        own[i] = code;
    }
    exponents[threadIdx.x] = e;
    store_codes<32>(own, codes + 8 * threadIdx.x);
    __syncthreads();
    out += 17 * first;
    for (int i = threadIdx.x; i < THREADS * 17; i += THREADS) {
        int b = i / 17, byte = i % 17;
        if (first + b >= blocks) break;
        out[i] = byte ? nibbles((const u8*)(codes + 8 * b), byte - 1, 16) : exponents[b];
    }
}

// ---- F16, BF16

__device__ inline u32 to_bfloat16(float v) {
    u32 bits = __float_as_uint(v);
    return (bits + (0x7FFF + (bits >> 16 & 1))) >> 16;
}

template <bool BRAIN> __device__ inline void cast(const float* w, i64 count, u16* out) {
    i64 i = 4 * ((i64)blockIdx.x * blockDim.x + threadIdx.x);
    if (i + 4 <= count) {
        float x[4];
        u32 half[4];
        load_run<4>(w + i, x);
#pragma unroll
        for (int j = 0; j < 4; j++) half[j] = BRAIN ? to_bfloat16(x[j]) : to_float16(x[j]);
        *(uint2*)(out + i) = make_uint2(half[0] | half[1] << 16, half[2] | half[3] << 16);
    } else {
        for (; i < count; i++) out[i] = BRAIN ? to_bfloat16(w[i]) : to_float16(w[i]);
    }
}

extern "C" __global__ void f16(const float* w, long long count, unsigned short* out) { cast<false>(w, count, out); }
extern "C" __global__ void bf16(const float* w, long long count, unsigned short* out) { cast<true>(w, count, out); }
