// gemv.cu: y = W x for one token, W in strips (strips.cuh), every format. This is what decode spends its time in.
//
// Must move, 4096 x 4096, int4-g128:   weights 8,781,824 + x 8,192 + y 16,384 B
// Must do:                             2 n k = 33.6 MFLOP
// Floor at 2.84 TB/s:                  3.1 us; 8192 x 28672: 43.4 us (float16: 166 us)
//
// v1, v2 are in gemv_plain.cu. A float32 product costs four instructions a weight, and 24 weights arrive a clock.
//
// v3  tensor cores as dot products    mma.sync multiplies 16 x 16 weights by 8 columns of activations in one
//     instruction; there is only one column, but two instructions a weight are left, and they are exact. The other
//     columns are not wasted: sub-block j's activations go to column j, the rest of that column being 0, so that column
//     j of the result is sub-block j's sum, and each lane scales two of them. 16 rows a block, its warps share k.
// v4  a ring of records in shared memory    cp.async fetches STAGES records ahead for each warp, without registers and
//     without waiting; one block a multiprocessor walks over strips, and its ring runs on from strip to strip. x is
//     brought to shared memory once.
// v5  v4 launched with overlap=True          the first records of the next launch are fetched while this one ends.
//
// bfloat16 activations become float16 with a power of two, which is exact for all that lies within 2^-29 of the largest
// (and in float32's last bits for the rest), so that one kind of tensor-core instruction serves both.
//
// compile with: -DX=f16 -DIS_BF16=0 -DBITS=4 -DSUB=128 -DHEADER=6 -DVALUE=V_ZERO -DZEROS=4 -DSCALE=S_F16
// compile with: -DX=bf16 -DIS_BF16=1 -DBITS=4 -DSUB=32 -DHEADER=16 -DVALUE=V_OFFSET -DOFFSET=0 -DSCALE=S_Q4_K
// compile with: -DX=f16 -DIS_BF16=0 -DBITS=2 -DSUB=16 -DHEADER=20 -DVALUE=V_OFFSET -DOFFSET=0 -DSCALE=S_Q2_K
// compile with: -DX=f16 -DIS_BF16=0 -DBITS=3 -DSUB=16 -DHEADER=14 -DVALUE=V_OFFSET -DOFFSET=4 -DSCALE=S_Q3_K
// compile with: -DX=f16 -DIS_BF16=0 -DBITS=5 -DSUB=32 -DHEADER=32 -DVALUE=V_OFFSET -DOFFSET=0 -DSCALE=S_F16_MIN
// compile with: -DX=f16 -DIS_BF16=0 -DBITS=6 -DSUB=16 -DHEADER=18 -DVALUE=V_OFFSET -DOFFSET=32 -DSCALE=S_Q6_K
// compile with: -DX=f16 -DIS_BF16=0 -DBITS=8 -DSUB=128 -DHEADER=8 -DVALUE=V_E4M3 -DSCALE=S_F32
// compile with: -DX=f16 -DIS_BF16=0 -DBITS=4 -DSUB=64 -DHEADER=16 -DVALUE=V_LEVELS -DSCALE=S_F32
// compile with: -DX=f16 -DIS_BF16=0 -DBITS=4 -DSUB=32 -DHEADER=8 -DVALUE=V_TABLE -DSCALE=S_E8M0 -DTABLE0=0x83828180u -DTABLE1=0x8c888684u -DTABLE2=0x7d7e7f80u -DTABLE3=0x74787a7cu
#include "strips.cuh"

#ifndef WARPS
#define WARPS 16
#endif
#ifndef STAGES
#define STAGES 4
#endif
#ifndef Y
#define Y float
#endif

// Dot products of a record's 16 rows with x; those of rows r and r + 8 are added to `low` and `high` in parts, which
// are spread over the four lanes of r. xs: the record's 256 activations, sums: those of its sub-blocks.
__device__ __forceinline__ void add_record(const unsigned char* record, const f16* xs, const float* sums,
                                           const unsigned* levels, int lane, float& low, float& high) {
    int r = lane >> 2, t = lane & 3;
    const unsigned char *first = record + r * HEADER, *second = first + 8 * HEADER;
    float d[4] = {0, 0, 0, 0};
#pragma unroll
    for (int q = 0; q < 4; q++) {
        Codes c = codes_of(record, q, lane);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int s = 4 * q + i, j = 16 * s / SUB;
            uint2 b = {0, 0};
            if (r == j % 8) b = *(const uint2*)(xs + 16 * s + 4 * t);
            unsigned a[4];
#if VALUE == V_LEVELS
            unsigned rest[4];
            levels_of(c, i, levels, a, rest);
            mma(d, rest, b);
#else
            values_of(c, i, offset_of(record, j, lane), a);
#endif
            mma(d, a, b);
        }
        if (SUBS > 8 ? q & 1 : q == 3) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int j = (SUBS > 8 ? 4 * (q - 1) : 0) + 2 * t + e;
                if (SUBS >= 8 || j < SUBS) {
                    float scale, minimum;
                    scale_of(first, j, scale, minimum);
                    low += scale * d[e];
                    if (HAS_MIN) low += minimum * sums[j];
                    scale_of(second, j, scale, minimum);
                    high += scale * d[2 + e];
                    if (HAS_MIN) high += minimum * sums[j];
                }
            }
            d[0] = d[1] = d[2] = d[3] = 0;
        }
    }
}

__device__ __forceinline__ void add_lanes(float& low, float& high) {
    for (int step = 1; step < 4; step *= 2) {
        low += __shfl_xor_sync(~0u, low, step);
        high += __shfl_xor_sync(~0u, high, step);
    }
}

__device__ __forceinline__ void store(Y* y, float value) {
#if defined(Y_HALF)
    put_half(y, value, IS_BF16);
#else
    put(y, value);
#endif
}

// A block a strip; x float16, k a multiple of 256, formats without minima.
extern "C" __global__ void __launch_bounds__(32 * WARPS) gemv_v3(const uint4* w, const f16* x, const unsigned* levels,
                                                                  Y* y, int n, int k) {
    __shared__ float parts[WARPS][16];
    int warp = threadIdx.x / 32, lane = threadIdx.x & 31, records = k / 256;
    const unsigned char* strip = (const unsigned char*)w + (long long)blockIdx.x * records * RECORD;
    float low = 0, high = 0;
    for (int i = warp; i < records; i += WARPS)
        add_record(strip + (long long)i * RECORD, x + 256 * i, 0, levels, lane, low, high);
    add_lanes(low, high);
    if ((lane & 3) == 0) parts[warp][lane >> 2] = low, parts[warp][8 + (lane >> 2)] = high;
    __syncthreads();
    if (threadIdx.x < 16) {
        float sum = 0;
        for (int i = 0; i < WARPS; i++) sum += parts[i][threadIdx.x];
        if (16 * blockIdx.x + threadIdx.x < n) store(y + 16 * blockIdx.x + threadIdx.x, sum);
    }
}

// Bring x to shared memory as float16, zeros behind its end; return what the result must be multiplied by.
__device__ __forceinline__ float stage_x(const X* x, int k, int padded, f16* xs, float* parts) {
#if IS_BF16
    unsigned largest = 0;
    for (int i = threadIdx.x; i < padded; i += 32 * WARPS) {
        unsigned bits = i < k ? x[i] : 0;
        xs[i] = bits;
        largest = max(largest, bits & 0x7fff);
    }
    largest = __reduce_max_sync(~0u, largest);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = __uint_as_float(largest);
    __syncthreads();
    for (int i = 0; i < WARPS; i++) largest = max(largest, __float_as_uint(parts[i]));
    int e = largest >> 7;  // the largest is to lie between 2^14 and 2^15
    e = largest == 0 || e == 255 ? 127 : min(max(14 + 127 - e + 127, 1), 253);
    float factor = __uint_as_float((unsigned)e << 23), back = __uint_as_float((unsigned)(254 - e) << 23);
    for (int i = threadIdx.x; i < padded; i += 32 * WARPS) xs[i] = to_f16(from_bf16(xs[i]) * factor);
    return back;
#else
    if (k % 8 == 0 && ((unsigned long long)x & 15) == 0) {
        for (int i = threadIdx.x; i < padded / 8; i += 32 * WARPS)
            ((uint4*)xs)[i] = i < k / 8 ? ((const uint4*)x)[i] : make_uint4(0, 0, 0, 0);
    } else {
        for (int i = threadIdx.x; i < padded; i += 32 * WARPS) xs[i] = i < k ? x[i] : (f16)0;
    }
    return 1;
#endif
}

// Any x and k. Shared memory: x, sums, parts, ring, as laid out below; see strips.py.
extern "C" __global__ void __launch_bounds__(32 * WARPS) gemv_v4(const uint4* w, const X* x, const unsigned* levels,
                                                                  Y* y, int n, int k) {
    extern __shared__ uint4 memory[];
    int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    int records = (k + 255) / 256, strips = (n + 15) / 16, padded = 256 * records;
    unsigned char* ring = (unsigned char*)memory + warp * STAGES * RECORD;
    f16* xs = (f16*)((unsigned char*)memory + WARPS * STAGES * RECORD);
    float* parts = (float*)(xs + padded);  // two sets, so that one barrier a strip is enough
    unsigned* table = (unsigned*)(parts + 2 * WARPS * 16);
    float* sums = (float*)(table + 16);

    int mine = (strips - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x;  // strips of this block
    int each = (records + WARPS - 1) / WARPS, total = mine * each;                // records of this warp
    auto fetch = [&](int i) {
        int record = warp + WARPS * (i % each);
        if (i < total && record < records) {
            long long strip = blockIdx.x + (long long)gridDim.x * (i / each);
            const unsigned char* from = (const unsigned char*)w + (strip * records + record) * RECORD;
#pragma unroll
            for (int o = 0; o < RECORD; o += 512)
                if (o + 512 <= RECORD || o + 16 * lane < RECORD)
                    copy16(ring + i % STAGES * RECORD + o + 16 * lane, from + o + 16 * lane, 16);
        }
        commit();
    };
    for (int i = 0; i < STAGES; i++) fetch(i);
    let_next_begin();
    wait_for_previous();
    float back = stage_x(x, k, padded, xs, parts);
#if VALUE == V_LEVELS
    if (threadIdx.x < 16) table[threadIdx.x] = levels[threadIdx.x];
#endif
    __syncthreads();
    if (HAS_MIN) {
        for (int i = threadIdx.x; i < padded / SUB; i += 32 * WARPS) {
            float sum = 0;
            for (int c = 0; c < SUB; c++) {  // a lane begins at its own column, or all would read one bank
                int column = (c + 2 * i) & (SUB - 1);
                sum += from_f16(xs[i * SUB + column]);
            }
            sums[i] = sum;
        }
        __syncthreads();
    }
    for (int i = 0, s = 0; s < mine; s++) {
        float low = 0, high = 0;
        for (int p = 0; p < each; p++, i++) {
            int record = warp + WARPS * p;
            wait<STAGES - 1>();
            __syncwarp();
            if (record < records)
                add_record(ring + i % STAGES * RECORD, xs + 256 * record, sums + SUBS * record, table, lane, low, high);
            __syncwarp();
            fetch(i + STAGES);
        }
        add_lanes(low, high);
        float* set = parts + (s & 1) * WARPS * 16;
        if ((lane & 3) == 0) set[16 * warp + (lane >> 2)] = low, set[16 * warp + 8 + (lane >> 2)] = high;
        __syncthreads();
        if (warp == s % WARPS && lane < 16) {
            float sum = 0;
            for (int i = 0; i < WARPS; i++) sum += set[16 * i + lane];
            int row = 16 * (blockIdx.x + gridDim.x * s) + lane;
            if (row < n) store(y + row, sum * back);
        }
    }
}
