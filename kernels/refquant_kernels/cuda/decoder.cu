// decoder.cu: what a Llama layer does with one token besides its products. Small: bytes and arithmetic hardly count,
// launches do, so each kernel takes in all that lies between two products.
//
//   normalize   h += more;  x = h / rms(h) * weight                          one block; 4096 values: 40 KB
//   attend      rotate q and k, append k and v to the cache, attention       the cache is read by every query head
//   join        put the two halves of an attention together                  elementwise
//   gate        silu(a) b                                                    elementwise
//
// With weights in strips only `attend` is left: the others are part of the products then (gemv.cu: INPUT, GATE, ADD).
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
// [kv_heads, places, 128]. Two blocks of 256 threads for each query head, one takes the even places, the other the odd
// ones and the new one. Both results, float16 [2, heads, 128], and the logarithms of what they weigh, float32 [2, heads],
// go to `halves`; who reads them adds them up. The first of the heads that share k and v appends those to the cache (the
// others use them from qkv, so nobody waits). Shared memory: a float a place.
extern "C" __global__ void __launch_bounds__(256) attend(const f16* qkv, const float* cosine, const float* sine, f16* keys,
                                                         f16* values, const int* position, f16* halves, int heads,
                                                         int kv_heads, int places) {
    extern __shared__ float scores[];  // of this half: place 2 i + half is number i
    __shared__ float q[128], k[128], parts[8], sums[8][128];
    let_next_begin();
    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    int head = blockIdx.x >> 1, half = blockIdx.x & 1, shared_by = heads / kv_heads, kv = head / shared_by;
    int at = position[0], count = (at + 1 - half) / 2;  // earlier places of this half
    f16 *its_keys = keys + (long long)kv * places * 128, *its_values = values + (long long)kv * places * 128;
    const f16* v = qkv + (heads + kv_heads + kv) * 128;
    auto row = [&](const f16* cache, int i) { return (const uint4*)(cache + (2 * max(min(i, count - 1), 0) + half) * 128); };
    // What earlier tokens left in the cache (and the position) was there long before: the kernels that choose a token
    // do not overlap. So it is fetched while the product before this kernel still runs.
    // Keys: eight lanes a place, sixteen columns each, four places a warp at once. Values: eight columns a thread,
    // sixteen places at once. Registers have 128 places of each.
    int part = lane % 8, of_four = lane / 8, column = thread % 16 * 8;
    uint4 near_keys[4][2], near_values[8];
#pragma unroll
    for (int u = 0; u < 4; u++)
#pragma unroll
        for (int i = 0; i < 2; i++) near_keys[u][i] = row(its_keys, 4 * warp + of_four + 32 * u)[2 * part + i];
#pragma unroll
    for (int u = 0; u < 8; u++) near_values[u] = row(its_values, thread / 16 + 16 * u)[thread % 16];
    float c = cosine[at * 64 + thread % 64], s = sine[at * 64 + thread % 64];
    wait_for_previous();
    if (thread < 128) {  // the two halves of a vector are rotated against each other
        const f16* from = thread < 64 ? qkv + head * 128 : qkv + (heads + kv) * 128;
        int i = thread % 64;
        float a = from_f16(__ldcg(from + i)), b = from_f16(__ldcg(from + 64 + i));
        float* to = thread < 64 ? q : k;
        to[i] = a * c - b * s, to[64 + i] = b * c + a * s;
    }
    float new_value = thread < 128 ? from_f16(__ldcg(v + thread)) : 0;
    __syncthreads();
    if (head % shared_by == 0 && half && thread < 128)
        its_keys[at * 128 + thread] = to_f16(k[thread]), its_values[at * 128 + thread] = to_f16(new_value);
    float mine[16], most = -1e30f;
#pragma unroll
    for (int i = 0; i < 16; i++) mine[i] = q[16 * part + i] * 0.08838834764831845f;  // / sqrt(128)
    for (int first = 4 * warp + of_four; first - of_four < count; first += 128) {
        if (first >= 128)
#pragma unroll
            for (int u = 0; u < 4; u++)
#pragma unroll
                for (int i = 0; i < 2; i++) near_keys[u][i] = row(its_keys, first + 32 * u)[2 * part + i];
#pragma unroll
        for (int u = 0; u < 4; u++) {
            int p = first + 32 * u;
            float dot = 0;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                unsigned pairs[4] = {near_keys[u][i].x, near_keys[u][i].y, near_keys[u][i].z, near_keys[u][i].w};
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    dot += mine[8 * i + 2 * e] * from_f16(pairs[e] & 0xffff);
                    dot += mine[8 * i + 2 * e + 1] * from_f16(pairs[e] >> 16);
                }
            }
            for (int step = 1; step < 8; step *= 2) dot += __shfl_xor_sync(~0u, dot, step);
            if (p < count) most = fmaxf(most, dot);
            if (p < count && part == 0) scores[p] = dot;
        }
    }
    if (warp == 0 && half) {
        float dot = 0;
        if (of_four == 0)
            for (int i = 0; i < 16; i++) dot += mine[i] * from_f16(to_f16(k[16 * part + i]));
        for (int step = 1; step < 8; step *= 2) dot += __shfl_xor_sync(~0u, dot, step);
        if (of_four == 0) most = fmaxf(most, dot);
        if (lane == 0) scores[count] = dot;
    }
    for (int step = 8; step < 32; step *= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
    if (lane == 0) parts[warp] = most;
    __syncthreads();
    for (int i = 0; i < 8; i++) most = fmaxf(most, parts[i]);
    __syncthreads();
    float sum = 0;
    for (int p = thread; p < count + half; p += 256) sum += scores[p] = __expf(scores[p] - most);
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (lane == 0) parts[warp] = sum;
    __syncthreads();
    sum = 0;
    for (int i = 0; i < 8; i++) sum += parts[i];
    float total[8] = {};
    for (int first = thread / 16; first < count; first += 128) {
        if (first >= 128)
#pragma unroll
            for (int u = 0; u < 8; u++) near_values[u] = row(its_values, first + 16 * u)[thread % 16];
#pragma unroll
        for (int u = 0; u < 8; u++) {
            float score = first + 16 * u < count ? scores[first + 16 * u] : 0;
            unsigned pairs[4] = {near_values[u].x, near_values[u].y, near_values[u].z, near_values[u].w};
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
        float all = half ? scores[count] * new_value : 0;
        for (int i = 0; i < 8; i++) all += sums[i][thread];
        halves[(half * heads + head) * 128 + thread] = to_f16(sum > 0 ? all / sum : 0);
        float* logs = (float*)(halves + 256 * heads);
        if (thread == 0) logs[half * heads + head] = sum > 0 ? most + __logf(sum) : -1e30f;
    }
}

// What a product wants that does not take halves: x [heads * 128].
extern "C" __global__ void join(const f16* halves, f16* x, int heads) {
    let_next_begin();
    wait_for_previous();
    int i = blockIdx.x * blockDim.x + threadIdx.x, k = 128 * heads;
    if (i >= k) return;
    const float* logs = (const float*)(halves + 2 * k);
    float a = 1 / (1 + __expf(logs[heads + i / 128] - logs[i / 128]));
    x[i] = to_f16(a * from_f16(halves[i]) + (1 - a) * from_f16(halves[k + i]));
}
