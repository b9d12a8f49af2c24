"""How the numbers of GGUF's block formats are chosen, byte for byte as ggml chooses them. Reading order:

    arithmetic  float32 as a C loop does it: ordered sums, the three ways of rounding
    scales      the searches: the scale, or scale and minimum, with the least weighted error
    blocks      matrices to blocks and back; the check of the importance
    legacy      Q4_0 Q4_1 Q5_0 Q5_1 Q8_0
    k           Q2_K Q3_K Q4_K Q5_K Q6_K
    iq          IQ4_NL IQ4_XS
    ternary     TQ1_0 TQ2_0
    mx          MXFP4
    floats      F32 F16 BF16

None of these looks at other weights than those of the block, or at what a layer computes: they round each block as well as
its own numbers allow. What they may be told is the **importance** of each column, the mean squared activation that meets
it, since an error in a weight costs its square times that.

`refquant.quantize(w, "Q4_K", importance=...)` runs them. The layouts are in `refquant.formats.gguf_blocks`.
"""

from refquant.methods.kquants import floats, iq, k, legacy, mx, ternary

__all__ = ["floats", "iq", "k", "legacy", "mx", "ternary"]
