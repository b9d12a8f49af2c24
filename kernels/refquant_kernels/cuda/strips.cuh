// strips.cuh: weights in the order in which tensor cores want them. strips.py packs them and documents the order.
//
// A matrix [n, k] is cut into strips of 16 rows, a strip into records of 256 columns. A record holds everything that is
// known about its 16 x 256 weights, one after the other, and a warp takes it as a whole:
//
//     16 x HEADER bytes    what the format keeps beside the codes, row by row: scales, minima, zero-points
//     512 x BITS bytes     the codes, in planes of 8, 4, 2, 1 bits (5 bits are a plane of 4 and a plane of 1)
//
// mma.sync.m16n8k16 multiplies 16 rows x 16 columns of weights: 16 steps make a record. In each, lane 4 r + t of the
// warp has to hold eight weights, in four registers of two:
//
//     register 0   row r,      columns 4t, 4t + 1          register 2   row r,      columns 4t + 2, 4t + 3
//     register 1   row r + 8,  columns 4t, 4t + 1          register 3   row r + 8,  columns 4t + 2, 4t + 3
//
// (The order of columns within a step is free as long as the activations follow it; this one lets a lane read four
// neighbouring activations at once.) So a lane has 64 pairs in a record: pair 4 step + register. In a plane of b bits
// pair p is in the lane's word p / (16 / b), its two codes at bits b e and 16 + b e, where e = p % (16 / b): a shift and
// a mask give both codes where the two halves of a register want them. Words 4 i .. 4 i + 3 of all lanes lie together,
// lane after lane, so that a warp reads 512 neighbouring bytes at once.
//
// The trick that makes a code a number without a conversion: 0x6400 is 1024 in float16, where neighbours are 1 apart, so
// the bits of the code put into its mantissa make 1024 + code. Subtracting 1024 + zero leaves code - zero, exactly.
// Scales are never multiplied into the weights: a product of a small integer with a float16 is exact in the tensor
// core's float32, and the scale comes once for SUB columns, in float32. So the result is as good as a float32 loop's.
//
// Defines (strips.py has a table of them by format):
//     BITS    of a code: 2 3 4 5 6 8          SUB    columns that share a scale: 16 32 64 128 256
//     HEADER  bytes a row                     VALUE  what a code means        SCALE  how the header is read

#pragma once
#include "numbers.cuh"

#define RECORD (16 * HEADER + 512 * BITS)  // bytes
#define SUBS (256 / SUB)                   // scales of a row in a record

#define V_OFFSET 0  // code - OFFSET
#define V_ZERO 1    // code - zero, a byte for each sub-block at byte ZEROS of the row's header
#define V_TABLE 2   // entry of a table of 16 signed bytes (TABLE0 .. TABLE3: its words, each entry plus 128)
#define V_E4M3 3    // an E4M3 number / 256
#define V_E5M2 4    // an E5M2 number
#define V_LEVELS 5  // a level of a table of 16 floats, as the sum of two float16

#define S_F16 0     // a float16 for each sub-block
#define S_F16_MIN 1 // a float16 scale and a float16 minimum, which is added
#define S_F32 2     // a float32 for each sub-block
#define S_E8M0 3    // a byte: the power of two of MXFP4, halved
#define S_Q2_K 4
#define S_Q3_K 5
#define S_Q4_K 6    // and Q5_K
#define S_Q6_K 7
#define S_IQ4_XS 8
#define S_D 9       // one float16

#define HAS_MIN (SCALE == S_F16_MIN || SCALE == S_Q2_K || SCALE == S_Q4_K)

__device__ __forceinline__ float half_at(const unsigned char* p) { return from_f16(*(const f16*)p); }

// Scale of sub-block j of a row, and what its minimum adds: weight = scale * value + minimum.
__device__ __forceinline__ void scale_of(const unsigned char* row, int j, float& scale, float& minimum) {
    minimum = 0;
#if SCALE == S_F16
    scale = half_at(row + 2 * j);
#elif SCALE == S_F16_MIN
    unsigned both = *(const unsigned*)(row + 4 * j);
    scale = from_f16(both & 0xffff), minimum = from_f16(both >> 16);
#elif SCALE == S_F32
    scale = *(const float*)(row + 4 * j);
#elif SCALE == S_E8M0
    unsigned e = row[j];
    scale = __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
#elif SCALE == S_Q2_K
    unsigned both = row[j];
    scale = half_at(row + 16) * (both & 15), minimum = -(half_at(row + 18) * (both >> 4));
#elif SCALE == S_Q3_K
    unsigned low = row[j & 7] >> (4 * (j >> 3)) & 15, high = row[8 + (j & 3)] >> (2 * (j >> 2)) & 3;
    scale = half_at(row + 12) * ((int)(low | high << 4) - 32);
#elif SCALE == S_Q4_K
    unsigned own = row[4 + (j & 3)], mins = row[8 + (j & 3)], shared = row[12 + (j & 3)];
    unsigned s = j < 4 ? own & 63 : (shared & 15) | own >> 6 << 4;
    unsigned m = j < 4 ? mins & 63 : shared >> 4 | mins >> 6 << 4;
    scale = half_at(row) * s, minimum = -(half_at(row + 2) * m);
#elif SCALE == S_Q6_K
    scale = half_at(row + 16) * (signed char)row[j];
#elif SCALE == S_IQ4_XS
    unsigned low = row[4 + (j >> 1)] >> (4 * (j & 1)) & 15, high = *(const unsigned short*)(row + 2) >> (2 * j) & 3;
    scale = half_at(row) * ((int)(low | high << 4) - 32);
#elif SCALE == S_D
    scale = half_at(row);
#endif
}

// ---- codes of one step

__device__ __forceinline__ unsigned shifted(unsigned w, int right) { return right >= 0 ? w >> right : w << -right; }

#if BITS == 8
#define WORDS 2  // of the widest plane, for one step
#else
#define WORDS 1
#endif

// The words of one lane for four steps: those of its planes.
struct Codes {
#if BITS == 8
    uint4 a, b;
#else
#if BITS >= 4
    uint4 four;
#endif
#if BITS == 2 || BITS == 3 || BITS == 6
    uint2 two;
#endif
#if BITS == 3 || BITS == 5
    unsigned one;
#endif
#endif
};

// Read steps 4 q .. 4 q + 3 of a record's codes.
__device__ __forceinline__ Codes codes_of(const unsigned char* record, int q, int lane) {
    const unsigned char* p = record + 16 * HEADER;
    Codes c;
#if BITS == 8
    c.a = *(const uint4*)(p + 1024 * q + 16 * lane), c.b = *(const uint4*)(p + 1024 * q + 512 + 16 * lane);
#else
#if BITS >= 4
    c.four = *(const uint4*)(p + 512 * q + 16 * lane), p += 2048;
#endif
#if BITS == 2 || BITS == 3 || BITS == 6
    c.two = *(const uint2*)(p + 512 * (q >> 1) + 16 * lane + 8 * (q & 1)), p += 1024;
#endif
#if BITS == 3 || BITS == 5
    c.one = *(const unsigned*)(p + 16 * lane + 4 * q);
#endif
#endif
    return c;
}

__device__ __forceinline__ unsigned word(uint4 v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// What is subtracted from the codes of rows r and r + 8 in sub-block j.
struct Offset {
    int low, high;
};

__device__ __forceinline__ Offset offset_of(const unsigned char* record, int j, int lane) {
#if VALUE == V_ZERO
    const unsigned char* row = record + (lane >> 2) * HEADER + ZEROS + j;
    return {row[0], row[8 * HEADER]};
#elif VALUE == V_OFFSET
    return {OFFSET, OFFSET};
#else
    return {0, 0};
#endif
}

__device__ __forceinline__ unsigned minus_offset(unsigned number, int offset) {
    return sub_f16x2(number, (0x6400u + offset) * 0x00010001u);
}

// Values of step 4 q + i (i: 0..3) in the four registers of mma.sync's first operand.
__device__ __forceinline__ void values_of(const Codes& c, int i, Offset zero, unsigned a[4]) {
#if VALUE == V_E4M3 || VALUE == V_E5M2
#pragma unroll
    for (int r = 0; r < 4; r++) {
        unsigned w = word(i < 2 ? c.a : c.b, 2 * (i & 1) + (r >> 1));
        unsigned pair = r & 1 ? w & 0xff00ff00u : w << 8 & 0xff00ff00u;
        a[r] = VALUE == V_E5M2 ? pair : (pair & 0x80008000u) | (pair & 0x7f007f00u) >> 1;
    }
#elif VALUE == V_TABLE
    unsigned w = word(c.four, i), v[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {  // four codes at once: the entry's byte among the first eight, among the last eight
        unsigned code = w >> (16 * h), place = code & 0x7777u;
        unsigned first = __byte_perm(TABLE0, TABLE1, place), last = __byte_perm(TABLE2, TABLE3, place);
        v[h] = __byte_perm(first, last, 0x3210u | (code & 0x8888u) >> 1);
    }
#pragma unroll
    for (int r = 0; r < 4; r++)
        a[r] = minus_offset((__byte_perm(v[0], v[1], r | (4 + r) << 8) & 0x00ff00ffu) | 0x64006400u, 128);
#elif BITS == 4 && VALUE != V_LEVELS
    // no shift where none is needed: 1024 + 16 code is as good, and a multiplication by 1/16 comes with the subtraction
    unsigned w = word(c.four, i), v = w >> 8;
    unsigned low = (0x6400u + zero.low) * 0x00010001u, high = (0xd400u + 16 * zero.high) * 0x00010001u;
    a[0] = sub_f16x2((w & 0x000f000fu) | 0x64006400u, low);
    a[1] = fma_f16x2((w & 0x00f000f0u) | 0x64006400u, 0x2c002c00u, high);  // x / 16 - (64 + zero)
    a[2] = sub_f16x2((v & 0x000f000fu) | 0x64006400u, low);
    a[3] = fma_f16x2((v & 0x00f000f0u) | 0x64006400u, 0x2c002c00u, high);
#elif BITS == 2
    unsigned w = (i < 2 ? c.two.x : c.two.y) >> (8 * (i & 1));
    a[0] = sub_f16x2((w & 0x00030003u) | 0x64006400u, (0x6400u + zero.low) * 0x00010001u);
    a[1] = fma_f16x2((w & 0x000c000cu) | 0x64006400u, 0x34003400u, (0xdc00u + 4 * zero.high) * 0x00010001u);
    a[2] = fma_f16x2((w & 0x00300030u) | 0x64006400u, 0x2c002c00u, (0xd400u + 16 * zero.low) * 0x00010001u);
    a[3] = fma_f16x2((w & 0x00c000c0u) | 0x64006400u, 0x24002400u, (0xcc00u + 64 * zero.high) * 0x00010001u);
#elif BITS == 8
#pragma unroll
    for (int r = 0; r < 4; r++) {
        unsigned w = word(i < 2 ? c.a : c.b, 2 * (i & 1) + (r >> 1)) >> (8 * (r & 1));
        a[r] = minus_offset((w & 0x00ff00ffu) | 0x64006400u, r & 1 ? zero.high : zero.low);
    }
#else
#pragma unroll
    for (int r = 0; r < 4; r++) {
        unsigned v = 0x64006400u;
#if BITS >= 4
        v |= word(c.four, i) >> (4 * r) & 0x000f000fu;
#endif
#if BITS == 6
        v |= shifted(i < 2 ? c.two.x : c.two.y, 8 * (i & 1) + 2 * r - 4) & 0x00300030u;
#elif BITS == 5
        v |= shifted(c.one, 4 * i + r - 4) & 0x00100010u;
#elif BITS == 3
        v |= (i < 2 ? c.two.x : c.two.y) >> (8 * (i & 1) + 2 * r) & 0x00030003u;
        v |= shifted(c.one, 4 * i + r - 2) & 0x00040004u;
#endif
        a[r] = minus_offset(v, r & 1 ? zero.high : zero.low);
    }
#endif
}

#if VALUE == V_LEVELS
// levels: 16 words, each the float16 nearest to 1024 times the level and, above it, the float16 nearest to the rest.
__device__ __forceinline__ void levels_of(const Codes& c, int i, const unsigned* levels, unsigned a[4], unsigned b[4]) {
    unsigned w = word(c.four, i);
#pragma unroll
    for (int r = 0; r < 4; r++) {
        unsigned x = levels[w >> (4 * r) & 15], y = levels[w >> (16 + 4 * r) & 15];
        a[r] = __byte_perm(x, y, 0x5410), b[r] = __byte_perm(x, y, 0x7632);
    }
}
#endif

// d += a b: 16 x 16 weights by 16 x 8 activations. d: rows r (0, 1) and r + 8 (2, 3), columns 2t and 2t + 1.
__device__ __forceinline__ void mma(float d[4], const unsigned a[4], uint2 b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

// ---- copies to shared memory that no thread waits for

__device__ __forceinline__ void copy16(void* to, const void* from, int bytes) {  // bytes beyond `bytes` become 0
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((unsigned)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int LEFT>
__device__ __forceinline__ void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

// Weights never change, so a kernel may fetch them while the one before it on the stream still runs; it must wait
// before it reads what that one wrote. Both do nothing unless the launch asked for the overlap.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
