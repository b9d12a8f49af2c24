// overlap.cuh: the two instructions that let a kernel begin before the one ahead of it has ended.
//
// Weights never change, so a kernel may fetch them while the one before it on the stream still runs; it must wait
// before it reads what that one wrote. Both do nothing unless the launch asked for the overlap.

#pragma once

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
