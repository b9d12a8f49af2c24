"""Fast paths on NVIDIA GPUs, in CUDA C++ compiled at run time. Importing this registers them as backend "cuda".

Importing needs no GPU; the first operation without one raises `BackendUnavailable`, which says what is missing.
Reading order:

    launch            compile, check, launch
    numbers.cuh       float16 and bfloat16
    tensors           between NumPy and the GPU
    encoders          quantize to the block formats: quantize_k.cu (and _plain), quantize_legacy.cu, quantize_iq.cu,
                      quantize_rounded.cu, which share arithmetic.cuh, searches.cuh, k_blocks.cuh, tile.cuh
    quantize_grids    RTN, NF4, FP8, LLM.int8: quantize_int.cu, quantize_codebook.cu, which share int_grid.cuh
    gptq, awq         gptq.cu; products and factors by torch
"""

from refquant_kernels.cuda import awq, encoders, gptq, quantize_grids

__all__ = ["awq", "encoders", "gptq", "quantize_grids"]
