"""Fast paths on the CPU, in Numba. Importing this registers them as backend "numba". Reading order:

    simd          sixteen numbers computed with as one
    machine       instructions that only some processors have
    compile       compiled when first used, kept on disk, spread over threads
    lanes         roundings, float16, transposition
    searches      ggml's searches for the best scale
    blocks        an encoder as an operation
    planes        codes into bytes
    quantize_k    Q2_K Q3_K Q4_K Q5_K Q6_K
    quantize_legacy, quantize_iq, quantize_rounded    the other block formats
    decode        what one block decodes to
    dequantize    every block format
    gemm          products of whole matrices: prefill, GPTQ
    activations   as whole numbers of 8 bits and of 24
    products      bytes of weights times bytes of activations
    matmul_k, matmul_pairs, matmul_ternary, matmul_iq4_xs    the kernels of the block formats
    matmul_int8   products with activations of 8 bits, every block format
    matmul_blocks    products with float32 activations, every block format
    int_grids, matmul_grids    quantize, dequantize; both products of the uniform grids
    codebooks     quantize, dequantize, matmul of NF4 and FP8
    llm_int8      both sides in 8 bits
    gptq, obq, awq    their loops

Every result is the NumPy reference's, to the byte where that is the rule (encoders, decoders), else within its bounds.
"""

from refquant_kernels.cpu import (
    awq,
    codebooks,
    dequantize,
    gptq,
    int_grids,
    llm_int8,
    matmul_blocks,
    matmul_grids,
    matmul_int8,
    obq,
    quantize_iq,
    quantize_k,
    quantize_legacy,
    quantize_rounded,
)

__all__ = [
    "awq",
    "codebooks",
    "dequantize",
    "gptq",
    "int_grids",
    "llm_int8",
    "matmul_blocks",
    "matmul_grids",
    "matmul_int8",
    "obq",
    "quantize_iq",
    "quantize_k",
    "quantize_legacy",
    "quantize_rounded",
]
