// CUDA C++ as host C++: enough of the language to run a kernel, whole, on the processor, for tests without a GPU.
//
// The threads of a block are coroutines. Each runs until it meets a barrier; when all have met it, they go on, in an
// order that changes from barrier to barrier, so that a missing __syncthreads() shows. Shared memory is static: blocks
// run one after the other. Floating point is that of the GPU where the two differ and a kernel can tell: fmaxf and fminf
// prefer a number to NaN, and the sign of a NaN is hidden by the kernels themselves. Compile with -ffp-contract=off.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>
#include <ucontext.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __constant__ static const
#define __shared__ static
#define __restrict__ __restrict
#define __launch_bounds__(...)

struct dim3_ { unsigned x, y, z; };
static dim3_ threadIdx, blockIdx, blockDim, gridDim;
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

template <class T, class F> static inline T reinterpret_bits(F v) { T r; memcpy(&r, &v, sizeof r); return r; }
static inline int __float_as_int(float v) { return reinterpret_bits<int>(v); }
static inline unsigned __float_as_uint(float v) { return reinterpret_bits<unsigned>(v); }
static inline float __int_as_float(int v) { return reinterpret_bits<float>(v); }
static inline float __uint_as_float(unsigned v) { return reinterpret_bits<float>(v); }
static inline float __fadd_rd(float a, float b) {  // rounded down; the sum must fit a double
    double sum = (double)a + b;
    float r = (float)sum;
    return r > sum ? nextafterf(r, -INFINITY) : r;
}
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline long long min(long long a, long long b) { return a < b ? a : b; }

namespace host {
const size_t STACK = 256 << 10;
enum { RUNS, AT_BLOCK, AT_WARP, ENDED };  // a thread runs, waits for its block, waits for its warp, has ended
struct Fiber { ucontext_t context; std::vector<char> stack; int state; };
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static unsigned current;
static double exchange[1024];
static void (*entry)();

static void begin() { entry(); fibers[current].state = ENDED; swapcontext(&fibers[current].context, &scheduler); }

static void barrier(int kind) {
    fibers[current].state = kind;
    dim3_ t = threadIdx;
    unsigned me = current;
    swapcontext(&fibers[me].context, &scheduler);
    threadIdx = t;
}

static void run_block(unsigned threads) {
    if (fibers.size() < threads) fibers.resize(threads);
    for (unsigned t = 0; t < threads; t++) {
        Fiber& f = fibers[t];
        if (f.stack.empty()) f.stack.resize(STACK);
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.data();
        f.context.uc_stack.ss_size = STACK;
        f.context.uc_link = nullptr;
        makecontext(&f.context, begin, 0);
        f.state = RUNS;
    }
    for (unsigned turn = 0;; turn++) {
        unsigned counts[4] = {0, 0, 0, 0};
        for (unsigned i = 0; i < threads; i++) {
            unsigned t = turn % 2 ? threads - 1 - i : i;
            if (fibers[t].state != RUNS) continue;
            current = t;
            threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
            swapcontext(&scheduler, &fibers[t].context);
        }
        for (unsigned t = 0; t < threads; t++) counts[fibers[t].state]++;
        if (counts[ENDED] == threads) return;
        bool together = counts[AT_BLOCK] == threads, any = together;
        for (unsigned first = 0; first < threads; first += 32) {
            unsigned last = first + 32 < threads ? first + 32 : threads;
            bool all = true;
            for (unsigned t = first; t < last; t++) all = all && fibers[t].state == AT_WARP;
            for (unsigned t = first; t < last; t++) if (all || together) fibers[t].state = RUNS;
            any = any || all;
        }
        if (!any) { fprintf(stderr, "threads wait at a barrier that others will never reach\n"); abort(); }
    }
}

template <class... A, size_t... I>
static void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) { kernel(*(A*)args[I]...); }

template <class... A> static void run(void (*kernel)(A...), const int* grid, const int* block, void** args) {
    static void (*k)(A...); static void** a;
    k = kernel; a = args;
    entry = [] { call(k, a, std::index_sequence_for<A...>()); };
    gridDim = {(unsigned)grid[0], (unsigned)grid[1], (unsigned)grid[2]};
    blockDim = {(unsigned)block[0], (unsigned)block[1], (unsigned)block[2]};
    for (unsigned z = 0; z < gridDim.z; z++) for (unsigned y = 0; y < gridDim.y; y++) for (unsigned x = 0; x < gridDim.x; x++) {
        blockIdx = {x, y, z};
        run_block(blockDim.x * blockDim.y * blockDim.z);
    }
}
}  // namespace host

static inline void __syncthreads() { host::barrier(host::AT_BLOCK); }
static inline void __syncwarp(unsigned = ~0u) { host::barrier(host::AT_WARP); }
// All threads of the warp must take part.
template <class T> static inline T exchange_with(T v, unsigned other) {
    memcpy(&host::exchange[host::current], &v, sizeof v);
    host::barrier(host::AT_WARP);
    T r; memcpy(&r, &host::exchange[other], sizeof r);
    host::barrier(host::AT_WARP);
    return r;
}
template <class T> static inline T __shfl_xor_sync(unsigned, T v, int lanes) { return exchange_with(v, host::current ^ lanes); }
template <class T> static inline T __shfl_sync(unsigned, T v, int lane) { return exchange_with(v, (host::current & ~31u) | lane); }

#define HOST_KERNEL(name) \
    extern "C" void host_##name(const int* grid, const int* block, void** args) { host::run(name, grid, block, args); }
