// decoder.cu: what a Llama layer does with one token besides its products. Small: bytes and arithmetic hardly count,
// launches do, so each kernel takes in all that lies between two products.
//
//   normalize   h += more;  x = h / rms(h) * weight                          one block; 4096 values: 40 KB
//   attend      rotate q and k, append k and v to the cache, attention       a block a query head; the cache is read once
//   gate        silu(a) b                                                    elementwise
//
// With weights in strips only `attend` is left: normalize and gate are part of the products then (gemv.cu: INPUT, GATE, ADD).
// All wait for the kernel before them (griddepcontrol) and let the next one begin, whose weights are fetched meanwhile.
#include "numbers.cuh"
#include "overlap.cuh"

// h [k] float32 += more [k] (if any); x [k] = h / sqrt(mean h^2 + eps) * weight. One block of 1024 threads.
extern "C" __global__ void normalize(float* h, const f16* more, const f16* weight, f16* x, int k, int add, float eps) {
    __shared__ float parts[32];
    let_next_begin();
    wait_for_previous();
    float sum = 0;
    for (int i = threadIdx.x; i < k; i += 1024) {
        float value = h[i];
        if (add) h[i] = value = value + from_f16(more[i]);
        sum += value * value;
    }
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = parts[threadIdx.x % 32];
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    float factor = rsqrtf(sum / k + eps);
    for (int i = threadIdx.x; i < k; i += 1024) x[i] = to_f16(h[i] * factor * from_f16(weight[i]));
}

// y [k] = silu(ab [0..k)) * ab [k..2k).
extern "C" __global__ void gate(const f16* ab, f16* y, int k) {
    let_next_begin();
    wait_for_previous();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= k) return;
    float a = from_f16(ab[i]), b = from_f16(ab[k + i]);
    y[i] = to_f16(a / (1 + __expf(-a)) * b);
}

// One token at `position[0]`. qkv: heads + 2 kv_heads vectors of 128; cosine, sine [places, 64]; the caches
// [kv_heads, places, 128]. A block of 256 threads a query head; the first of those that share a head of k and v appends
// it (the others use it from qkv, so nobody waits). Shared memory: a float a place.
extern "C" __global__ void attend(const f16* qkv, const float* cosine, const float* sine, f16* keys, f16* values,
                                  const int* position, f16* out, int heads, int kv_heads, int places) {
    extern __shared__ float scores[];
    __shared__ float q[128], k[128], parts[8], sums[8][128];
    let_next_begin();
    int head = blockIdx.x, shared_by = heads / kv_heads, kv = head / shared_by, at = position[0];
    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    f16 *its_keys = keys + (long long)kv * places * 128, *its_values = values + (long long)kv * places * 128;
    const f16* v = qkv + (heads + kv_heads + kv) * 128;
    // What earlier tokens left in the cache (and the position) was there long before: the kernels that choose a token
    // do not overlap. So it can be brought near while the product before this kernel still runs.
    for (int line = (head % shared_by) * 256 + thread; line < 2 * at; line += 256 * shared_by) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(its_keys + 64 * line));
        asm volatile("prefetch.global.L2 [%0];" ::"l"(its_values + 64 * line));
    }
    wait_for_previous();
    if (thread < 128) {  // the two halves of a vector are rotated against each other
        const f16* from = thread < 64 ? qkv + head * 128 : qkv + (heads + kv) * 128;
        int i = thread % 64;
        float a = from_f16(from[i]), b = from_f16(from[64 + i]), c = cosine[at * 64 + i], s = sine[at * 64 + i];
        float* to = thread < 64 ? q : k;
        to[i] = a * c - b * s, to[64 + i] = b * c + a * s;
    }
    __syncthreads();
    if (head % shared_by == 0 && thread < 128)
        its_keys[at * 128 + thread] = to_f16(k[thread]), its_values[at * 128 + thread] = v[thread];
    // Eight lanes a place, sixteen columns each, four places a warp at once; the new place by warp 0, from q and k here.
    int part = lane % 8, of_four = lane / 8;
    float mine[16], most = -1e30f;
#pragma unroll
    for (int i = 0; i < 16; i++) mine[i] = q[16 * part + i] * 0.08838834764831845f;  // / sqrt(128)
    for (int first = 4 * warp + of_four; first - of_four < at; first += 128) {
        uint4 pieces[4][2];  // of four places, all asked for before the first is used
#pragma unroll
        for (int u = 0; u < 4; u++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                pieces[u][i] = ((const uint4*)(its_keys + min(first + 32 * u, at - 1) * 128 + 16 * part))[i];
#pragma unroll
        for (int u = 0; u < 4; u++) {
            int p = first + 32 * u;
            float dot = 0;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                unsigned pairs[4] = {pieces[u][i].x, pieces[u][i].y, pieces[u][i].z, pieces[u][i].w};
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    dot += mine[8 * i + 2 * e] * from_f16(pairs[e] & 0xffff);
                    dot += mine[8 * i + 2 * e + 1] * from_f16(pairs[e] >> 16);
                }
            }
            for (int step = 1; step < 8; step *= 2) dot += __shfl_xor_sync(~0u, dot, step);
            if (p < at) most = fmaxf(most, dot);
            if (p < at && part == 0) scores[p] = dot;
        }
    }
    if (warp == 0) {
        float dot = 0;
        if (of_four == 0)
            for (int i = 0; i < 16; i++) dot += mine[i] * from_f16(to_f16(k[16 * part + i]));
        for (int step = 1; step < 8; step *= 2) dot += __shfl_xor_sync(~0u, dot, step);
        if (of_four == 0) most = fmaxf(most, dot);
        if (lane == 0) scores[at] = dot;
    }
    for (int step = 8; step < 32; step *= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
    if (lane == 0) parts[warp] = most;
    __syncthreads();
    for (int i = 0; i < 8; i++) most = fmaxf(most, parts[i]);
    __syncthreads();
    float sum = 0;
    for (int p = thread; p <= at; p += 256) sum += scores[p] = __expf(scores[p] - most);
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (lane == 0) parts[warp] = sum;
    __syncthreads();
    sum = 0;
    for (int i = 0; i < 8; i++) sum += parts[i];
    // Eight columns a thread, sixteen places at once.
    int column = thread % 16 * 8;
    float total[8] = {};
    for (int first = thread / 16; first < at; first += 128) {
        uint4 eight[8];
#pragma unroll
        for (int u = 0; u < 8; u++) eight[u] = *(const uint4*)(its_values + min(first + 16 * u, at - 1) * 128 + column);
#pragma unroll
        for (int u = 0; u < 8; u++) {
            float score = first + 16 * u < at ? scores[first + 16 * u] : 0;
            unsigned pairs[4] = {eight[u].x, eight[u].y, eight[u].z, eight[u].w};
#pragma unroll
            for (int e = 0; e < 4; e++) {
                total[2 * e] += score * from_f16(pairs[e] & 0xffff);
                total[2 * e + 1] += score * from_f16(pairs[e] >> 16);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) total[i] += __shfl_xor_sync(~0u, total[i], 16);
    if (lane < 16)
#pragma unroll
        for (int i = 0; i < 8; i++) sums[warp][column + i] = total[i];
    __syncthreads();
    if (thread < 128) {
        float all = scores[at] * from_f16(v[thread]);
        for (int i = 0; i < 8; i++) all += sums[i][thread];
        out[head * 128 + thread] = to_f16(all / sum);
    }
}
