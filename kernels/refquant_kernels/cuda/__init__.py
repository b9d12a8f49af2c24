"""Fast paths on NVIDIA GPUs, in CUDA C++ compiled at run time. Importing this registers them as backend "cuda".

Importing needs no GPU; the first operation without one raises `BackendUnavailable`, which says what is missing.
Reading order:

    launch        compile, check, launch
    numbers.cuh   float16 and bfloat16
    decode.cu     what the bytes of every format stand for;  dequantize: the operation
    gemv_plain.cu two first attempts at a product with one token
    strips.cuh    weights in the order of the tensor cores;  strips: packing them
    gemv.cu       products with one token
    gemm.cu       products with more;  products: the operation
"""

from refquant_kernels.cuda import dequantize, products

__all__ = ["dequantize", "products"]
