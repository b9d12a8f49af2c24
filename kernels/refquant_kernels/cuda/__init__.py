"""Fast paths on NVIDIA GPUs, in CUDA C++ compiled at run time. Importing this registers them as backend "cuda".

Importing needs no GPU; the first operation without one raises `BackendUnavailable`, which says what is missing.
Reading order:

    launch        compile, check, launch
    numbers.cuh   float16 and bfloat16
"""
