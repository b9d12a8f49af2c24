"""Claims on AWQ: salient channels, the scaling trick, its search, and how it compares with GPTQ."""

import numpy as np

from refquant.bandwidth.quality import PUBLISHED
from refquant.bandwidth.shapes import SHAPES
from refquant.claims.gptq import deltas, found, listing, sources
from refquant.claims.ledger import Evidence, Finding, claim, equal, every
from refquant.methods import awq, rtn

# AWQ paper, table 1: OPT-6.7B, INT3-g128, WikiText-2
FP16, RTN, KEPT = 10.86, 43.2, 13.0


@claim("awq", "About 1 % of the weight channels matter far more; the rest can be quantized with little harm.")
def one_percent_is_salient(proof: Evidence) -> Finding:
    """Gap closed by keeping 1 % (published), and the 1 %'s share of the output error in real layers (measured)."""
    closed = (RTN - KEPT) / (RTN - FP16)
    shares = proof.layers["tiny"]["top_percent_error_share"]  # SmolLM2's weights were rounded before
    median = float(np.median(shares))
    return Finding(
        f"kept in FP16 they close {100 * closed:.0f} % of RTN's loss; they cause {100 * median:.0f} % of the output "
        f"error in the median layer, {100 * min(shares):.0f} to {100 * max(shares):.0f} %",
        every([closed > 0.9, median > 0.1, min(shares) > 0.5]),
        {"gap_closed": closed, "error_share_median": median, "error_share_least": min(shares)},
        "chosen by activation magnitude, and not in every layer; AWQ itself keeps no channel in FP16",
        "AWQ paper table 1 (OPT-6.7B, INT3); measured on tiny",
    )


@claim("awq", "Multiplying a column by s and its activation by 1/s leaves the product unchanged.")
def scaling_is_exact(proof: Evidence) -> Finding:
    """Largest relative change of a product in float64, over the sum of magnitudes."""
    rng = np.random.default_rng(3)
    x, w, s = rng.standard_normal((16, 64)), rng.standard_normal((8, 64)), rng.uniform(0.5, 4, 64)
    change = np.abs((x / s) @ (w * s).T - x @ w.T) / (np.abs(x) @ np.abs(w).T)
    worst = float(change.max())
    return Finding(f"changed by {worst:.1e} of the sum", every([worst < 1e-14]), {"relative_change": worst})


@claim("awq", "Scaling a channel up gives it finer steps; the group's steps grow, so there is a best scale.")
def scaling_has_an_optimum(proof: Evidence) -> Finding:
    """Gaussian rows of 128, one column scaled by s: its error, and the mean step of the groups, over s = 1."""
    rng = np.random.default_rng(4)
    w = rng.standard_normal((2000, 128)).astype(np.float32)
    errors, steps = {}, {}
    for s in (1.0, 2.0, 4.0, 16.0):
        scale = np.where(np.arange(128) == 0, np.float32(s), np.float32(1))
        rounded = rtn.rounded(w * scale, "int4-g128") / scale
        errors[s] = float(((rounded - w)[:, 0] ** 2).mean())
        steps[s] = float(((rounded - w)[:, 1:] ** 2).mean())
    salient, others = errors[2.0] / errors[1.0], steps[16.0] / steps[1.0]
    return Finding(
        f"at s = 2 the channel's squared error falls to {salient:.2f}, the others' rises to "
        f"{steps[2.0] / steps[1.0]:.2f}; at s = 16 the others' rises to {others:.1f}",
        every([salient < 0.5, others > 2]),
        {"salient_at_2": salient, "others_at_2": steps[2.0] / steps[1.0], "others_at_16": others},
    )


@claim("awq", "The search tries powers alpha over the closed interval from 0 to 1.")
def alpha_covers_zero_to_one(proof: Evidence) -> Finding:
    """The exponents that the search tries by default."""
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((64, 32)) * np.geomspace(0.1, 10, 32)).astype(np.float32)
    alphas = awq.search([rng.standard_normal((8, 32)).astype(np.float32)], x, "int4-g32").alphas
    return Finding(
        f"{len(alphas)} values from {alphas.min():g} to {alphas.max():g}",
        equal(float(alphas.max()), 1.0),
        {"tried": len(alphas), "least": float(alphas.min()), "largest": float(alphas.max())},
        "1 is never tried",
        "llm-awq auto_scale.py; refquant follows it",
    )


@claim("awq", "The inverse scales are absorbed into the operation before, so nothing is left at run time.")
def scales_are_always_absorbed(proof: Evidence) -> Finding:
    """Whether v_proj's outputs match o_proj's inputs, as absorption there needs, in each known model."""
    models = {name: shape.kv_heads == shape.heads for name, shape in SHAPES.items()}
    able = sum(models.values())
    return Finding(
        f"norms and up_proj always; v_proj into o_proj in {able} of {len(models)} known models",
        every(models.values()),
        {"models": len(models), "v_into_o": able},
        "not o_proj's under grouped-query attention: its scale is left out there",
        "llm-awq auto_scale.py: only where the two shapes are equal",
    )


@claim("awq", "AWQ matches or beats GPTQ on most benchmarks.")
def awq_matches_gptq(proof: Evidence) -> Finding:
    """Pairs of AWQ and GPTQ at the same bits on the same model; measured pairs count like published ones."""
    pairs = {
        f"{model} {kind}": values[f"GPTQ {kind}"] - values[f"AWQ {kind}"]
        for model, _, _, _, values in PUBLISHED
        for kind in ("int4-g128", "int3-g128")
        if f"AWQ {kind}" in values and f"GPTQ {kind}" in values
    }
    for kind in ("int4-g128", "int3-g128"):
        mine = [proof.results.get(f"{method} {kind}") for method in ("GPTQ", "AWQ")]
        if all(mine):
            pairs[f"measured {mine[0].model} {kind}"] = mine[0].perplexity - mine[1].perplexity
    better = sum(value >= 0 for value in pairs.values())
    return Finding(
        f"better or equal in {better} of {len(pairs)} pairs, by {min(pairs.values()):.2f} to {max(pairs.values()):.2f}",
        every(value >= 0 for value in pairs.values()),
        pairs,
        "GPTQ with reordering is close behind; other programs' defaults differ",
        "AWQ paper table 4, its authors' own runs; measured pairs are named",
    )


@claim("awq", "AWQ INT4 is near-lossless: perplexity rises by less than 0.1.")
def awq_is_near_lossless(proof: Evidence) -> Finding:
    """Published and measured increases below 0.1."""
    items = found(proof, "AWQ int4-g128")
    return Finding(
        listing(items),
        every(item.delta < 0.1 for item in items),
        deltas(items),
        "from 13B up; 0.13 at 7B",
        sources(items),
    )
