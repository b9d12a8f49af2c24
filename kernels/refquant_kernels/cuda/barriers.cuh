// barriers.cuh: barriers in shared memory (mbarrier): some arrive, others wait, and who arrives need not wait.
//
// A barrier has completed phase 0, 1, ... when it was arrived at `count` times in each; wait for phase p with p & 1.

#pragma once

__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void barrier_init(unsigned barrier, int count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

__device__ __forceinline__ void barrier_arrive(unsigned barrier) {
    asm volatile("{.reg .b64 state; mbarrier.arrive.shared.b64 state, [%0];}" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void barrier_wait(unsigned barrier, int parity) {
    asm volatile(
#if __CUDA_ARCH__ >= 900
        "{.reg .pred p; AGAIN: mbarrier.try_wait.parity.shared.b64 p, [%0], %1; @p bra DONE; bra AGAIN; DONE: }"
#else
        "{.reg .pred p; AGAIN: mbarrier.test_wait.parity.shared.b64 p, [%0], %1; @p bra DONE; bra AGAIN; DONE: }"
#endif
        ::"r"(barrier), "r"(parity)
        : "memory");
}
