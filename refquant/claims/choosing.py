"""Claims of the lesson's table of methods: bits per weight, quality and speed of each row."""

from refquant.bandwidth.weights import store
from refquant.claims.gptq import SHAPE
from refquant.claims.ledger import Evidence, Finding, claim, equal, every, within
from refquant.quantized import find_format

# arXiv 2208.07339: table 1, C4 perplexity unquantized and with LLM.int8, by parameters in 10^9
INT8_QUALITY = {
    0.125: (25.65, 25.83),
    1.3: (15.91, 15.93),
    2.7: (14.43, 14.44),
    6.7: (13.30, 13.24),
    13: (12.45, 12.45),
}
# the same, appendix D: speed of a matrix product over FP16 by model width; and BLOOM-176B, milliseconds a token
INT8_SPEED = {768: 0.14, 1024: 0.20, 2048: 0.36, 2560: 0.51, 4096: 0.64, 5120: 0.86, 8192: 1.22, 12288: 1.81}
BLOOM = (239, 253)


def _row(name: str, label: str, storage: str, claimed: float):
    def test(proof: Evidence) -> Finding:
        bits = find_format(storage).bits_per_weight(SHAPE)
        return Finding(f"{bits:.5g}", equal(bits, claimed, 1e-3), {"bits": bits}, "scales and packed zero-points")

    test.__name__ = name
    claim("choosing", f"{label} takes {claimed:g} bits a weight.")(test)


_row("table_gptq_int4", "GPTQ or AWQ INT4 (g128)", "int4-g128", 4.25)
_row("table_gptq_int3", "GPTQ INT3 (g128)", "int3-g128", 3.25)
_row("table_int8", "INT8 (LLM.int8)", "llm-int8", 8.0)


@claim("choosing", "FP16 takes 16 bits a weight.")
def table_fp16(proof: Evidence) -> Finding:
    """A whole GGUF file in F16, whose norms stay in float32."""
    bits = store("llama-3.1-8b", "F16").bits_per_weight
    return Finding(f"{bits:.4f}", equal(bits, 16, 1e-3), {"bits": bits})


@claim("choosing", "INT8 (LLM.int8) is lossless: perplexity rises by less than 0.01.")
def int8_is_lossless(proof: Evidence) -> Finding:
    """Published increases below 0.01, by size."""
    rises = {f"{size:g}B": round(after - before, 4) for size, (before, after) in INT8_QUALITY.items()}
    return Finding(
        ", ".join(f"{rise:+.2f} {size}" for size, rise in rises.items()),
        every(rise < 0.01 for rise in rises.values()),
        rises,
        "from 6.7B up",
        "LLM.int8 paper, table 1, C4",
    )


@claim("choosing", "INT8 (LLM.int8) or FP8 is effectively free: no measurable loss of quality.")
def eight_bits_are_free(proof: Evidence) -> Finding:
    """Measured increases of perplexity within two standard errors of the increase, token by token."""
    items = {label: proof.results[label] for label in ("LLM.int8", "FP8 E4M3 per channel") if label in proof.results}
    return Finding(
        ", ".join(f"{label} {q.delta:+.3f} ± {q.stderr:.3f} on {q.model}" for label, q in items.items()),
        every(abs(q.delta) <= 2 * q.stderr for q in items.values()),
        {f"{label} over its standard error": q.delta / q.stderr for label, q in items.items()},
        "small enough to vanish in most benchmarks, and found where the same tokens are compared one by one",
        next(iter(items.values())).source,
    )


@claim("choosing", "INT8 (LLM.int8) serves about 1.5 times as fast as FP16.")
def int8_is_faster(proof: Evidence) -> Finding:
    """Published speed of its products by width, and of a whole model, within 10 % of 1.5."""
    speeds = {f"product, width {width}": speed for width, speed in INT8_SPEED.items()}
    speeds["BLOOM-176B, 8 A100s"] = BLOOM[0] / BLOOM[1]
    return Finding(
        f"{min(speeds.values())} to {max(speeds.values())} of FP16 for one product, "
        f"{speeds['BLOOM-176B, 8 A100s']:.2f} for BLOOM-176B",
        within(speeds.values(), 1.35, 1.65),
        speeds,
        "it saves memory; the decomposition costs time below widths of about 6000",
        "LLM.int8 paper",
    )
