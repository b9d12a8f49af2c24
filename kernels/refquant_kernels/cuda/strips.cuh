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
//     register 0   row r,      columns 2t, 2t + 1          register 2   row r,      columns 2t + 8, 2t + 9
//     register 1   row r + 8,  columns 2t, 2t + 1          register 3   row r + 8,  columns 2t + 8, 2t + 9
//
// A plane of b bits (1, 2, 4) keeps them in 32-bit words of the lane, 4 / b steps to a word: the two codes of a register
// at bits p and 16 + p, where p = b (step % (4 / b)) + 4 register. So a code's pieces lie in steps of four bits in every
// plane, a shift or two bring those of a whole step into line, and one mask gives both codes of a register. In a plane
// of 8 bits a word holds two registers: p = 8 (register % 2). Words 4 i .. 4 i + 3 of all lanes lie together, lane after
// lane, so that a warp reads 512 neighbouring bytes at once.
//
// The trick that makes a code a number without a conversion: 0x6400 is 1024 in float16, where neighbours are 1 apart, so
// the bits of the code put into its mantissa make 1024 + code. Subtracting 1024 + zero leaves code - zero, exactly.
// Scales are never multiplied into the weights: a product of a small integer with a float16 is exact in the tensor
// core's accumulator, and the scale comes once for SUB columns, in float32.
//
// What the tensor core does to a sum: it aligns 16 products and what they are added to by the largest exponent, cuts off
// what lies some 2^-25 below, and cuts the sum to 24 bits. Small integers lose nothing but the ends of the very smallest
// activations. Values of 8 bits and more lose up to a last place a step, always toward zero, so that errors add up where
// those of a float32 loop cancel. So a sum goes into a float32 one after RUN columns. Levels are sums of two float16: what
// the smaller parts make is summed first, or apart, since in turn with the larger they would double the number of cuts.
// (tests/gpu/test_accuracy.py: NF4 with blocks of 128 and int8 with a scale a row broke the accuracy rule before, in a
// few of a hundred draws; nothing does in thousands.)
//
// Defines (strips.py has a table of them by format):
//     BITS    of a code: 2 3 4 5 6 8          SUB    columns that share a scale: 16 32 64 128 256
//     HEADER  bytes a row                     VALUE  what a code means        SCALE  how the header is read

#pragma once
#include "numbers.cuh"
#include "overlap.cuh"

#define RECORD (16 * HEADER + 512 * BITS)  // bytes
#define SUBS (256 / SUB)                   // scales of a row in a record

#define V_OFFSET 0  // code - OFFSET
#define V_ZERO 1    // code - zero, a byte for each sub-block at byte ZEROS of the row's header
#define V_TABLE 2   // entry of a table of 16 signed bytes (TABLE0 .. TABLE3: its words, each entry plus 128)
#define V_E4M3 3    // an E4M3 number / 256
#define V_E5M2 4    // an E5M2 number
#define V_LEVELS 5  // a level of a table of 16 floats, as the sum of two float16
#define V_E2M1 6    // an E2M1 number / 2^14

#define S_F16 0     // a float16 for each sub-block
#define S_F16_MIN 1 // a float16 scale and a float16 minimum, which is added
#define S_F32 2     // a float32 for each sub-block
#define S_E8M0 3    // a byte: 2^(byte - 127)
#define S_Q2_K 4
#define S_Q3_K 5
#define S_Q4_K 6    // and Q5_K
#define S_Q6_K 7
#define S_IQ4_XS 8
#define S_D 9       // one float16

#ifndef OFFSET
#define OFFSET 0
#endif

#define LONGEST (VALUE == V_LEVELS ? 32 : BITS >= 6 ? 64 : 256)
#define RUN (SUB < LONGEST ? SUB : LONGEST)  // columns that the tensor core sums
#define RUNS (256 / RUN)

#if VALUE == V_E2M1
#define UNIT 16384.0f  // what a sum of values is to be multiplied by
#else
#define UNIT 1.0f
#endif
#define HAS_MIN (SCALE == S_F16_MIN || SCALE == S_Q2_K || SCALE == S_Q4_K)

__device__ __forceinline__ float half_at(const unsigned char* p) { return from_f16(*(const f16*)p); }

// Two bytes, each / 2^24: at the bottom of a float16 they are denormal numbers, which is quicker than a conversion. WIDE
// undoes the division. (Tensor cores would take such numbers for codes as well, but round their products too early.)
__device__ __forceinline__ void bytes_of(unsigned two, float values[2]) {
    unsigned wide = __byte_perm(two, 0, 0x4140);
    values[0] = from_f16(wide & 0xffff), values[1] = from_f16(wide >> 16);
}
#define WIDE 16777216.0f

__device__ __forceinline__ unsigned two_bytes(const unsigned char* p) { return *(const unsigned short*)p; }

// What all sub-blocks of a row in a record have in common: factors of scales, and of what their minima add.
struct Common {
    float scale, minimum;
};

__device__ __forceinline__ Common common_of(const unsigned char* row) {
#if SCALE == S_Q2_K
    return {half_at(row + 16) * WIDE, half_at(row + 18) * (-WIDE / 16)};
#elif SCALE == S_Q3_K
    return {half_at(row + 12) * WIDE, 0};
#elif SCALE == S_Q4_K
    return {half_at(row) * WIDE, half_at(row + 2) * -WIDE};
#elif SCALE == S_Q6_K
    return {half_at(row + 16), 0};
#elif SCALE == S_IQ4_XS || SCALE == S_D
    return {half_at(row), 0};
#else
    return {1, 1};
#endif
}

// Scales of sub-blocks j and j + 1 (j even) of a row, and what their minima add, but for the common factors:
// weight = scale * value + minimum. Where a record has one sub-block only, the second is whatever follows.
__device__ __forceinline__ void scales_of(const unsigned char* row, int j, float scale[2], float minimum[2]) {
    minimum[0] = minimum[1] = 0;
#if SCALE == S_F16
    scale[0] = half_at(row + 2 * j), scale[1] = SUBS > 1 ? half_at(row + 2 * j + 2) : 0;
#elif SCALE == S_F16_MIN
    unsigned first = *(const unsigned*)(row + 4 * j), second = *(const unsigned*)(row + 4 * j + 4);
    scale[0] = from_f16(first & 0xffff), minimum[0] = from_f16(first >> 16);
    scale[1] = from_f16(second & 0xffff), minimum[1] = from_f16(second >> 16);
#elif SCALE == S_F32
    scale[0] = *(const float*)(row + 4 * j), scale[1] = SUBS > 1 ? *(const float*)(row + 4 * j + 4) : 0;
#elif SCALE == S_E8M0
    unsigned e[2] = {row[j], row[j + 1]};
    for (int i = 0; i < 2; i++) scale[i] = __uint_as_float(e[i] ? e[i] << 23 : 0x00400000u);
#elif SCALE == S_Q2_K
    unsigned both = __byte_perm(two_bytes(row + j), 0, 0x4140), s = both & 0x000f000f, m = both & 0x00f000f0;
    scale[0] = from_f16(s & 0xffff), scale[1] = from_f16(s >> 16);
    minimum[0] = from_f16(m & 0xffff), minimum[1] = from_f16(m >> 16);
#elif SCALE == S_Q3_K
    unsigned low = two_bytes(row + (j & 7)) >> (4 * (j >> 3)) & 0x0f0f;
    unsigned s = (two_bytes(row + 8 + (j & 3)) >> (2 * (j >> 2)) & 0x0303) << 4 | low;
    bytes_of(s, scale);
    scale[0] -= 32 / WIDE, scale[1] -= 32 / WIDE;
#elif SCALE == S_Q4_K
    unsigned own = two_bytes(row + 4 + (j & 3)), mins = two_bytes(row + 8 + (j & 3));
    unsigned shared = two_bytes(row + 12 + (j & 3));
    unsigned s = j < 4 ? own & 0x3f3f : (shared & 0x0f0f) | (own >> 2 & 0x3030);
    unsigned m = j < 4 ? mins & 0x3f3f : (shared >> 4 & 0x0f0f) | (mins >> 2 & 0x3030);
    bytes_of(s, scale), bytes_of(m, minimum);
#elif SCALE == S_Q6_K
    for (int i = 0; i < 2; i++) scale[i] = (signed char)row[j + i];
#elif SCALE == S_IQ4_XS
    unsigned low = row[4 + (j >> 1)], high = two_bytes(row + 2) >> (2 * j);
    scale[0] = (int)((low & 15) | (high & 3) << 4) - 32;
    scale[1] = (int)(low >> 4 | (high >> 2 & 3) << 4) - 32;
#elif SCALE == S_D
    scale[0] = 1, scale[1] = 0;
#endif
}

// Scale and minimum of a row in sub-block j, with all factors.
__device__ __forceinline__ void scale_of(const unsigned char* row, int j, float& scale, float& minimum) {
    float scales[2], minima[2];
    scales_of(row, j & ~1, scales, minima);
    Common common = common_of(row);
    scale = UNIT * common.scale * (j & 1 ? scales[1] : scales[0]);
    minimum = common.minimum * (j & 1 ? minima[1] : minima[0]);
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

// (w & mask) | number in one instruction. (Of two constants the compiler would make two.)
__device__ __forceinline__ unsigned put_codes(unsigned w, unsigned mask, unsigned number) {
    unsigned d;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(w), "r"(mask), "r"(number));
    return d;
}

__device__ __forceinline__ unsigned minus_offset(unsigned number, int offset) {
    return sub_f16x2(number, (0x6400u + offset) * 0x00010001u);
}

#if BITS <= 6
// Codes of step 4 q + i, the lower four bits of them: register r's at bits 4 r and 16 + 4 r.
__device__ __forceinline__ unsigned nibbles(const Codes& c, int i) {
#if BITS >= 4
    return word(c.four, i);
#else
    unsigned two = (i < 2 ? c.two.x : c.two.y) >> (2 * (i & 1));
#if BITS == 3
    return (two & 0x33333333u) | (shifted(c.one, i - 2) & 0x44444444u);
#else
    return two;
#endif
#endif
}
#endif

// Values of step 4 q + i (i: 0..3) in the four registers of mma.sync's first operand.
__device__ __forceinline__ void values_of(const Codes& c, int i, Offset zero, unsigned a[4]) {
#if VALUE == V_E4M3 || VALUE == V_E5M2
#pragma unroll
    for (int r = 0; r < 4; r++) {
        unsigned w = word(i < 2 ? c.a : c.b, 2 * (i & 1) + (r >> 1));
        unsigned pair = r & 1 ? w & 0xff00ff00u : w << 8 & 0xff00ff00u;
        a[r] = VALUE == V_E5M2 ? pair : (pair & 0x80008000u) | (pair & 0x7f007f00u) >> 1;
    }
#elif VALUE == V_E2M1
#pragma unroll
    for (int r = 0; r < 4; r++)  // sign to bit 15, the other three to the lowest of the exponent and the highest of the rest
        a[r] = (shifted(nibbles(c, i), 4 * r - 12) & 0x80008000u) | (shifted(nibbles(c, i), 4 * r - 9) & 0x0e000e00u);
#elif VALUE == V_TABLE
    unsigned w = nibbles(c, i), v[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {  // four codes at once: the entry's byte among the first eight, among the last eight
        unsigned code = w >> (16 * h), place = code & 0x7777u;
        unsigned first = __byte_perm(TABLE0, TABLE1, place), last = __byte_perm(TABLE2, TABLE3, place);
        v[h] = __byte_perm(first, last, 0x3210u | (code & 0x8888u) >> 1);
    }
#pragma unroll
    for (int r = 0; r < 4; r++)
        a[r] = minus_offset(put_codes(__byte_perm(v[0], v[1], r | (4 + r) << 8), 0x00ff00ffu, 0x64006400u), 128);
#elif BITS == 8
#pragma unroll
    for (int r = 0; r < 4; r++) {
        unsigned w = word(i < 2 ? c.a : c.b, 2 * (i & 1) + (r >> 1)) >> (8 * (r & 1));
        a[r] = minus_offset(put_codes(w, 0x00ff00ffu, 0x64006400u), r & 1 ? zero.high : zero.low);
    }
#elif VALUE != V_LEVELS
    // Registers 1 and 3 are not shifted into place: 1024 + 16 code will do, and the division by 16 comes for nothing with
    // the subtraction. What lies above a code's lower four bits is at bit 4 then, or bit 8. Nor are odd steps of two bits.
    const unsigned mask = (1 << (BITS < 4 ? BITS : 4)) - 1;
    const int odd = BITS == 2 ? 2 * (i & 1) : 0;
#if BITS == 2
    unsigned w = i < 2 ? c.two.x : c.two.y;
#else
    unsigned w = nibbles(c, i);
#endif
    unsigned v = w >> 8, low = (0x00010001u * mask) << odd, high = low << 4;
#if BITS == 5
    unsigned up = shifted(c.one, i - 4), up8 = c.one >> (4 + i);
    const unsigned above = 0x00100010u;
#elif BITS == 6
    unsigned up = shifted(i < 2 ? c.two.x : c.two.y, 2 * (i & 1) - 4), up8 = (i < 2 ? c.two.x : c.two.y) >> (4 + 2 * (i & 1));
    const unsigned above = 0x00300030u;
#endif
#pragma unroll
    for (int r = 0; r < 4; r++) a[r] = put_codes(r < 2 ? w : v, r & 1 ? high : low, 0x64006400u);
#if BITS > 4
#pragma unroll
    for (int r = 0; r < 4; r++) a[r] = put_codes(r < 2 ? up : up8, r & 1 ? above << 4 : above, a[r]);
#endif
    if (odd) {  // (1024 + 4 code) / 4 - (256 + zero), (1024 + 64 code) / 64 - (16 + zero)
        unsigned less4 = (0xdc00u + 4 * zero.low) * 0x00010001u, less64 = (0xcc00u + 64 * zero.high) * 0x00010001u;
        a[0] = fma_f16x2(a[0], 0x34003400u, less4), a[2] = fma_f16x2(a[2], 0x34003400u, less4);
        a[1] = fma_f16x2(a[1], 0x24002400u, less64), a[3] = fma_f16x2(a[3], 0x24002400u, less64);
    } else {
        unsigned less = (0x6400u + zero.low) * 0x00010001u;          // 1024 + zero
        unsigned less16 = (0xd400u + 16 * zero.high) * 0x00010001u;  // -(64 + zero)
        a[0] = sub_f16x2(a[0], less), a[2] = sub_f16x2(a[2], less);
        a[1] = fma_f16x2(a[1], 0x2c002c00u, less16), a[3] = fma_f16x2(a[3], 0x2c002c00u, less16);
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

__device__ __forceinline__ void mma_first(float d[4], const unsigned a[4], uint2 b) {  // d = a b
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %10, %10, %10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y), "f"(0.0f));
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
