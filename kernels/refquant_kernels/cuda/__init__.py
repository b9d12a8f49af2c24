"""Fast paths on NVIDIA GPUs, in CUDA C++ compiled at run time. Importing this registers them as backend "cuda".

Importing needs no GPU; the first operation without one raises `BackendUnavailable`, which says what is missing.
Reading order:

    launch            compile, check, launch
    numbers.cuh       float16 and bfloat16
    decode.cu         what the bytes of every format stand for;  dequantize: the operation
    gemv_plain.cu     two first attempts at a product with one token
    strips.cuh        weights in the order of the tensor cores;  strips: packing them
    tokens.cuh        activations and results, alike in all products
    gemv.cu           products with one token
    gemm.cu           products with more; gemm_sm90.cu (wgmma.cuh): on Hopper;  products: the operation
    decoder.cu        what a model does between its products;  decoder: one token, as a CUDA graph
    tensors           between NumPy and the GPU
    encoders          quantize to the block formats: quantize_k.cu (and _plain), quantize_legacy.cu, quantize_iq.cu,
                      quantize_rounded.cu, which share arithmetic.cuh, searches.cuh, k_blocks.cuh, tile.cuh
    quantize_grids    RTN, NF4, FP8, LLM.int8: quantize_int.cu, quantize_codebook.cu, which share int_grid.cuh; int8.cu
    gptq, awq         gptq.cu; products and factors by torch
"""

from refquant_kernels.cuda import awq, dequantize, encoders, gptq, products, quantize_grids

__all__ = ["awq", "dequantize", "encoders", "gptq", "products", "quantize_grids"]
