"""Methods: weights, and perhaps calibration data, become codes and scales. Reading order:

    rtn       round each weight to its nearest level
    obq       one weight at a time, the one that costs least first; the rest of the row makes up for it
    gptq      the same, a column at a time and in one order for every row, so that it scales
    awq       scale the channels with large activations up before rounding
    llm_int8  8-bit integers for weights and activations; the columns with outliers apart
    fp8       8-bit floats, one scale for a row, a matrix or a block
    nf4       4-bit quantiles of the normal distribution; the scales quantized too; what QLoRA trains through
    mx        4-bit floats in small blocks, with scales of 8 bits: MXFP4 and NVFP4
    kquants   the searches behind the block formats of GGUF files, byte for byte ggml's
    mixes     which of those formats llama.cpp gives to each tensor; mix_rules has the rules
    registry  the methods by name, and the rows of the table

Importing this package registers every method, in the order of the table's rows.
"""

from refquant.methods import rtn, obq, gptq, awq, llm_int8, fp8, nf4, mx, kquants  # isort: skip

__all__ = ["awq", "fp8", "gptq", "kquants", "llm_int8", "mx", "nf4", "obq", "rtn"]
