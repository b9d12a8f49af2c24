"""The block formats of GGUF files, byte for byte: what each byte means, and what it decodes to. Reading order:

    blocks    what they share: records, and codes in planes
    floats    F32 F16 BF16
    legacy    Q4_0 Q4_1 Q5_0 Q5_1 Q8_0       one scale
    k         Q2_K Q3_K Q4_K Q5_K Q6_K       scales of scales
    iq        IQ4_NL IQ4_XS                  a table of uneven values
    ternary   TQ1_0 TQ2_0                    -1, 0, +1
    mx        MXFP4                          four-bit floats

Every name is ggml's. A matrix [n, k] in any of them is one array, `blocks`, uint8 [n, bytes per row]: exactly the bytes
of the file. `refquant.ops.unpack` gives the numbers in it by name (`d`, `scales`, `codes`, ...), `refquant.dequantize`
the weights, with the roundings of ggml's own C code in their order: equal to the last bit, for every byte string.

How the numbers are chosen is told in `refquant.methods.kquants`.
"""

from refquant.formats.gguf_blocks import floats, iq, k, legacy, mx, ternary

__all__ = ["floats", "iq", "k", "legacy", "mx", "ternary"]
