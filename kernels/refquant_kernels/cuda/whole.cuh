// whole.cuh: Q2_K times one token in whole numbers, for gemv.cu.
//
// In float16 two codes cost two instructions: into a mantissa, and back down. 2.6 bits a weight arrive so fast that those
// are too many (some 320 instructions of a warp a record, 190 here: 11.0 and 9.1 us for 4096 x 14336 on an H100). For
// whole numbers tensor cores take bytes, and one mask takes four codes out of a word to where they belong:
// mma.sync.m16n8k32, 16 rows x 32 columns by 8.
//
// x becomes a whole number too, exactly: v = x times a power of two, the same for a record of 256, |v| < 2^30, in four
// digits of 8 bits with a sign, v = d0 + 256 d1 + 65536 d2 + 2^24 d3. (What is smaller than 2^-20 of the record's largest
// may lose its end, 2^-29 of the largest.) The 8 columns of the second operand are digits 0 .. 3 for sub-block s, digits
// 0 .. 3 for sub-block s + 8, the rows of the other sub-block being 0. Sums stay exact until a record ends: two of them,
// 16 bits each, meet their scales in one instruction. Minima, bytes as well, meet the sums of x in the same way.
//
// A word of codes (strips.cuh) has row r at bits 0 and 2 of each byte, row r + 8 at bits 4 and 6, even steps at 0 and 4.
// Odd steps are not shifted into place: their codes are four times too large, and their x is divided by four. The bytes
// of lane 4 r + t are columns 2t, 2t + 8, 2t + 1, 2t + 9 of the sub-block.
//
// In shared memory, of each record: 1024 bytes, digits, as 16 bytes for each lane (SWAPPED so that those who write meet
// fewer in a bank) and each four of the eight steps. Elsewhere 64 bytes, digits of sums / 16, and a float that undoes the
// power of two.

#pragma once
#include "strips.cuh"

__device__ __forceinline__ void whole_mma(int d[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                          unsigned b1) {  // d = a b
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %10, %10, %10};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "r"(0));
}

__device__ __forceinline__ void whole_mma_16(int d[4], unsigned a0, unsigned a1, unsigned b) {  // 16 columns
    asm("mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a0), "r"(a1), "r"(b), "r"(0));
}

// sum + low half of `two` * byte 0 (HIGH: 2) of `scales` + high half * byte 1 (3); halves have a sign, bytes have none.
template <int HIGH>
__device__ __forceinline__ int add_two(unsigned two, unsigned scales, int sum) {
    int d;
    if (HIGH) asm("dp2a.hi.s32.u32 %0, %1, %2, %3;" : "=r"(d) : "r"(two), "r"(scales), "r"(sum));
    else asm("dp2a.lo.s32.u32 %0, %1, %2, %3;" : "=r"(d) : "r"(two), "r"(scales), "r"(sum));
    return d;
}

// Words of shared memory; what is in the ring changes, so that these must not be put off or shared.
__device__ __forceinline__ uint4 ring_words(unsigned from) {
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(from));
    return v;
}

__device__ __forceinline__ unsigned ring_word(unsigned from) {
    unsigned v;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(from));
    return v;
}

__device__ __forceinline__ unsigned kept(unsigned v) {  // a number that is not to be computed anew where it is used
    asm volatile("" : "+r"(v));
    return v;
}

// Where a lane finds its part: of a record (codes, its two rows), of x and sums in shared memory; which columns it has.
struct Whole {
    unsigned codes, rows, factors, slot, swapped, sums, back, first, second;
};

__device__ __forceinline__ Whole whole_of(unsigned xs, unsigned sums, int lane) {
    int r = lane >> 2, h = lane >> 1 & 1, column = lane >> 4;
    Whole w;
    w.codes = kept(16 * HEADER + 16 * lane), w.rows = kept(r * HEADER + 8 * h);
    w.factors = kept(r * HEADER + 16), w.back = kept(sums + 64);
    w.slot = kept(xs + 16 * (lane ^ column << 2)), w.swapped = kept(xs + 512 + 16 * (lane ^ (column << 2 | 1)));
    w.sums = kept(sums + (column ? 0 : 4 * lane)), w.first = kept(!column), w.second = kept(column);
    return w;
}

// As gemv.cu's add_record, for the record in shared memory with the columns 256 * at ... A lane's parts are those of its
// digits: 0 and 1, or 2 and 3, which are to be multiplied by 65536.
__device__ __forceinline__ void add_whole(unsigned record, int at, const Whole& w, int lane, float& low, float& high) {
    int t = lane & 3;
    uint4 early = ring_words(record + w.codes), late = ring_words(record + w.codes + 512);  // steps 0 .. 7, 8 .. 15
    uint4 x[2] = {ring_words(w.slot + 1024 * at), ring_words(w.swapped + 1024 * at)};
    unsigned row = record + w.rows, scales[2][2], minima[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        unsigned u = ring_word(row + 8 * HEADER * i), v = ring_word(row + 8 * HEADER * i + 4);
        minima[i] = (t & 1 ? v : u) >> 4 & 0x0f0f0f0fu;
        scales[i][0] = u & 0x0f0f0f0fu, scales[i][1] = v & 0x0f0f0f0fu;
    }
    int sum[2][2] = {}, less[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        unsigned u = word(early, j), v = word(late, j), u4 = u >> 4, v4 = v >> 4;
        int d[2][4];
#pragma unroll
        for (int p = 0; p < 2; p++) {
            unsigned mask = p ? 0x0c0c0c0cu : 0x03030303u, b = word(x[j / 2], 2 * j % 4 + p);
            whole_mma(d[p], u & mask, u4 & mask, v & mask, v4 & mask, b * w.first, b * w.second);
        }
#pragma unroll
        for (int e = 0; e < 4; e++) {
            unsigned two = __byte_perm(d[0][e], d[1][e], 0x5410);
            int& s = sum[e / 2][e % 2];
            s = j % 2 ? add_two<1>(two, scales[e / 2][j / 2], s) : add_two<0>(two, scales[e / 2][j / 2], s);
        }
    }
    whole_mma_16(less, minima[0], minima[1], ring_word(w.sums + 68 * at) * w.first);
    float back = __uint_as_float(ring_word(w.back + 68 * at));
#pragma unroll
    for (int i = 0; i < 2; i++) {
        unsigned factors = ring_word(record + w.factors + 8 * HEADER * i);  // d, dmin
        float product = from_f16(factors & 0xffff) * ((float)sum[i][1] * 256 + (float)sum[i][0]);
        product += from_f16(factors >> 16) * -16.0f * ((float)less[2 * i + 1] * 256 + (float)less[2 * i]);
        (i ? high : low) += back * product;
    }
}

// Four digits of a whole number below 2^30, one a byte.
__device__ __forceinline__ unsigned digits_of(float v) { return (unsigned)(__float2int_rn(v) + 0x00808080) ^ 0x00808080u; }

// Put down columns 8 i .. 8 i + 7 of x, float16, and what else there is. All lanes of a warp call it, with a record's i.
__device__ __forceinline__ void put_whole(uint4 x, int i, unsigned* xs, unsigned char* sums) {
    int lane = i & 31, record = i / 32, s = lane >> 1, half = lane & 1, p = s & 1, m = s & 7, column = s >> 3;
    unsigned pairs[4] = {x.x, x.y, x.z, x.w}, largest = 0;
#pragma unroll
    for (int e = 0; e < 4; e++) largest = max(largest, max(pairs[e] & 0x7fff, pairs[e] >> 16 & 0x7fff));
    largest = __reduce_max_sync(~0u, largest);
    // a float16 with exponent e is less than 2^(e - 14)
    unsigned power = 127 + 44 - (largest >> 10);
    float factor = __uint_as_float(power << 23), undo = __uint_as_float((254 - power) << 23);
    sums += 68 * record;
    if (lane == 0) *(float*)(sums + 64) = largest < 0x7c00 ? undo : __uint_as_float(0x7fffffffu);  // infinity: NaN
    // This lane goes on with pairs 2 half, 2 half + 1 of its own and of the lane that has the other half.
    unsigned kept[2], other[2];
#pragma unroll
    for (int e = 0; e < 2; e++) {
        kept[e] = half ? pairs[2 + e] : pairs[e];
        other[e] = __shfl_xor_sync(~0u, half ? pairs[e] : pairs[2 + e], 1);
    }
    float sum = 0, of = p ? factor / 4 : factor;
    unsigned* to = xs + 256 * record + 128 * (m >> 2) + (m & 3);
#pragma unroll
    for (int e = 0; e < 2; e++) {
        unsigned low = half ? other[e] : kept[e], high = half ? kept[e] : other[e];
        float v[4] = {from_f16(low & 0xffff), from_f16(high & 0xffff), from_f16(low >> 16), from_f16(high >> 16)};
        sum += v[0] + v[1] + (v[2] + v[3]);
        unsigned d[4];
#pragma unroll
        for (int b = 0; b < 4; b++) d[b] = digits_of(v[b] * of);
        unsigned a01 = __byte_perm(d[0], d[1], 0x5140), b01 = __byte_perm(d[2], d[3], 0x5140);
        unsigned a23 = __byte_perm(d[0], d[1], 0x7362), b23 = __byte_perm(d[2], d[3], 0x7362);
        unsigned words[4] = {__byte_perm(a01, b01, 0x5410), __byte_perm(a01, b01, 0x7632),
                             __byte_perm(a23, b23, 0x5410), __byte_perm(a23, b23, 0x7632)};
        int t = (2 * half + e) ^ (m >> 2);
#pragma unroll
        for (int digit = 0; digit < 4; digit++) to[4 * (4 * (4 * column + (digit ^ column)) + t)] = words[digit];
    }
    sum += __shfl_xor_sync(~0u, sum, 1);
    unsigned digits = digits_of(sum * (factor / 16)) >> (16 * half);
    sums += 32 * half + s;
    sums[0] = digits, sums[16] = digits >> 8;
}
