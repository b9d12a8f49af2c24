"""Methods: weights, and perhaps calibration data, become codes and scales. Reading order:

    rtn       round each weight to its nearest level
    obq       one weight at a time, the one that costs least first; the rest of the row makes up for it
    gptq      the same, a column at a time and in one order for every row, so that it scales
    awq       scale the channels with large activations up before rounding
<<<<<<< HEAD
    kquants   the searches behind the block formats of GGUF
    mixes     which of those formats llama.cpp gives to each tensor; mix_rules has the rules
=======
    kquants   the searches behind the block formats of GGUF files, byte for byte ggml's
>>>>>>> kquants
    registry  the methods by name, and the rows of the table

Importing this package registers every method.
"""

from refquant.methods import awq, gptq, kquants, obq, rtn

__all__ = ["awq", "gptq", "kquants", "obq", "rtn"]
