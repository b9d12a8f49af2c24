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

None of these looks at other weights than those of the block, or at what a layer computes: they round each block as well
as its own numbers allow. What they may be told is the **importance** of each column, the mean squared activation that
meets it, since an error in a weight costs its square times that.

**Importance of zero** means that an error costs nothing, and is allowed, in places or everywhere. Where it is zero in a
whole block nothing distinguishes one scale from another: Q4_1 and Q5_1 keep the first guess, from minimum to maximum;
all others that use an importance get d = 0, so the block decodes to 0. Negative, NaN or infinite importance is refused.

**NaN and infinity.** `refquant.quantize` refuses them and says where the first is. ggml's quantizer does not look. What
a released build (xllamacpp 2026.10, x86) makes of one bad weight::

    NaN       Q4_0 Q5_0                 code 0; with importance the whole row becomes NaN
              Q4_1 Q5_1                 code 0, the block's minimum
              Q8_0 TQ1_0 TQ2_0 MXFP4    0
              Q2_K Q4_K Q5_K            code 0; with importance all 256 weights of the block become 0
              Q3_K Q6_K                 its 16 weights become 0; with importance in Q3_K all 256
              IQ4_NL IQ4_XS             its 32 weights become 0; with importance in IQ4_XS all 256
    infinity  Q3_K Q6_K IQ4_XS MXFP4    as for NaN, but MXFP4's 32 weights become 0
              Q2_K Q4_K Q5_K            the block becomes NaN; with importance and -infinity, 0
              others                    the block becomes NaN (Q4_0 Q5_0: NaN and infinity); Q4_0 Q5_0 with importance,
                                        the whole row
    F16 BF16 F32                        stay what they are

Most of these leave no trace in the file: the damage is a block of zeros, or one wrong weight. Hence the refusal.

`refquant.quantize(w, "Q4_K", importance=...)` runs them. The layouts are in `refquant.formats.gguf_blocks`.
"""

from refquant import ops
from refquant.methods.kquants import floats, iq, k, legacy, mx, ternary
from refquant.methods.registry import Method, Row, register_method

__all__ = ["floats", "iq", "k", "legacy", "mx", "ternary"]

_USES = {
    "Q8_0": "Max quality, enough RAM",
    "Q6_K": "Close to unquantized",
    "Q5_K_M": "Local, quality-sensitive",
    "Q4_K_M": "Local / laptop / Ollama",
    "Q3_K_M": "Maximum compression",
    "Q2_K": "Memory extremely tight",
}

# A row of the table is a mix; what the method does to one layer by itself is its block format.
register_method(
    Method(
        "gguf",
        layer=lambda w, name, inputs: ops.quantize(w, name),
        rows=tuple(Row(f"GGUF {mix}", "gguf", mix, "CPU / hybrid", use) for mix, use in _USES.items()),
    )
)
