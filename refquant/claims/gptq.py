"""Claims on RTN and GPTQ: what rounding costs, the Hessian, groups and their bits, near-lossless."""

import inspect
import itertools

import numpy as np

from refquant.bandwidth.quality import Quality, published
from refquant.claims.ledger import Evidence, Finding, claim, equal, every, within
from refquant.grids import as_grid
from refquant.methods import gptq
from refquant.quantized import find_format

SHAPE = (4096, 4096)
# GPTQ paper (arXiv 2210.17323), section 5 and table 2: minutes on one A100
MINUTES = {"OPT-13B": 20.9, "OPT-30B": 44.9, "OPT-66B": 96.0, "OPT-175B": 252.0, "BLOOM-1.7B": 2.9, "BLOOM-7.1B": 10.0}
OPT_175B = Quality("GPTQ int4-row", "opt-175b", 8.34, 8.37, "GPTQ paper, WikiText-2")


def found(proof: Evidence, method: str, *more: Quality) -> list[Quality]:
    """Every quality known of a method: measured first, then published."""
    return [*([proof.results[method]] if method in proof.results else []), *published(method), *more]


def listing(items: list[Quality]) -> str:
    """Perplexity increases with their models, as text."""
    return ", ".join(f"{item.delta:+.2f} {item.model}" for item in items)


def deltas(items: list[Quality]) -> dict[str, float]:
    """Perplexity increases by model and source, as numbers."""
    return {f"{item.model} ({item.source})": item.delta for item in items}


def sources(items: list[Quality]) -> str:
    """Where the qualities come from, each source once."""
    return "; ".join(dict.fromkeys(item.source for item in items))


@claim("gptq", "Round-to-nearest works at 8 bits.")
def rtn_works_at_8_bits(proof: Evidence) -> Finding:
    """Perplexity of 8-bit round-to-nearest (Q8_0, and measured rows) at most 0.5 % higher."""
    items = [*found(proof, "Q8_0"), *(proof.results[key] for key in ("RTN int8-row",) if key in proof.results)]
    worst = max(item.relative for item in items)
    return Finding(
        f"at most {100 * worst:.2f} % more perplexity",
        every(item.relative <= 0.005 for item in items),
        deltas(items),
        "Q8_0 is round-to-nearest in blocks of 32",
        sources(items),
    )


@claim("gptq", "At 4 bits round-to-nearest noticeably degrades quality.")
def rtn_degrades_at_4_bits(proof: Evidence) -> Finding:
    """Perplexity of RTN int4-g128 at least 1 % higher on every model known."""
    items = found(proof, "RTN int4-g128")
    return Finding(listing(items), every(item.relative >= 0.01 for item in items), deltas(items), source=sources(items))


@claim("gptq", "GPTQ gives near-lossless 4-bit models: perplexity rises by less than 0.1.")
def gptq_is_near_lossless(proof: Evidence) -> Finding:
    """Published and measured increases below 0.1."""
    items = found(proof, "GPTQ int4-g128", OPT_175B)
    return Finding(
        listing(items),
        every(item.delta < 0.1 for item in items),
        deltas(items),
        "on the largest models; at 7B the published increase is 0.16",
        sources(items),
    )


@claim("gptq", "At 3 bits the loss becomes noticeable even with compensation.")
def gptq_degrades_at_3_bits(proof: Evidence) -> Finding:
    """Perplexity of GPTQ int3-g128 at least 5 % higher."""
    items = found(proof, "GPTQ int3-g128")
    return Finding(listing(items), every(item.relative >= 0.05 for item in items), deltas(items), source=sources(items))


@claim("gptq", "Two bits destroy quality for all but the smallest tasks.")
def two_bits_destroy_quality(proof: Evidence) -> Finding:
    """Perplexity of the Q2_K mix at least 25 % higher."""
    items = found(proof, "Q2_K")
    return Finding(
        ", ".join(f"+{100 * item.relative:.0f} % {item.model}" for item in items),
        every(item.relative >= 0.25 for item in items),
        {f"{item.model} ({item.source})": item.relative for item in items},
        "newer models, trained on more tokens a parameter, suffer more; Q2_K holds about 3 bits a weight",
        sources(items),
    )


def _levels(bits: int, claimed: int):
    def test(proof: Evidence) -> Finding:
        w = np.linspace(-1, 1, 4096, dtype=np.float32)[None]
        grid = as_grid(f"int{bits}-row")
        scales, zeros = grid.fit_groups(w)
        levels = len(np.unique(grid.encode(w, scales[:, grid.group_index(4096)], zeros[:, grid.group_index(4096)])))
        return Finding(f"{levels} levels", equal(levels, claimed), {"levels": levels})

    test.__name__ = f"levels_of_{bits}_bits"
    return test


claim("gptq", "Three bits have 8 levels.")(_levels(3, 8))
claim("gptq", "INT4 has 16 levels.")(_levels(4, 16))


@claim("gptq", "The Hessian of the layer's squared error is 2 X X^T.")
def hessian_is_two_xxt(proof: Evidence) -> Finding:
    """Against a float64 product; and the same codes whatever positive number multiplies it."""
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((256, 64)).astype(np.float32), rng.standard_normal((16, 64)).astype(np.float32)
    mine = gptq.hessian(x).astype(np.float64)
    plain = 2 * x.astype(np.float64).T @ x
    factor = float((mine * plain).sum() / (plain**2).sum())
    error = float(np.abs(mine - factor * plain).max() / np.abs(mine).max())
    codes = [gptq.quantize(w, h, "int4-g32").quantized.arrays["codes"] for h in (plain, 1024 * plain)]
    return Finding(
        f"2 X X^T up to the factor 1/{1 / factor:.0f} (the number of tokens), which changes no code",
        every([error < 1e-4, np.array_equal(*codes)]),
        {"factor": factor, "relative_error": error, "codes_changed": int((codes[0] != codes[1]).sum())},
    )


@claim("gptq", "Where the inverse Hessian's diagonal is very large, the compensation of the other weights is small.")
def insensitive_columns_compensate_little(proof: Evidence) -> Finding:
    """Two inputs of correlation r: the factor [H^-1]_10 / [H^-1]_00 against the diagonal, r from 0 to 0.9999."""
    cases = []
    for r in (0.0, 0.9, 0.99, 0.9999):
        inverse = np.linalg.inv(np.array([[1.0, r], [r, 1.0]]))
        cases.append((float(inverse[0, 0]), abs(float(inverse[1, 0] / inverse[0, 0]))))
    (first, small), *_, (last, large) = cases
    return Finding(
        f"as the diagonal grows from {first:.0f} to {last:.0f}, the factor grows from {small:.0f} to {large:.4f}",
        every(after[1] < before[1] for before, after in itertools.pairwise(cases)),
        {"diagonal": last, "factor": large},
        "what gets small is the error's cost, delta^2 / (2 [H^-1]_jj): another input stands in, through a large factor",
    )


@claim("gptq", "GPTQ works in blocks of 128 columns.")
def blocks_of_128(proof: Evidence) -> Finding:
    """The default, and that another size gives the same codes."""
    default = inspect.signature(gptq.quantize).parameters["block_size"].default
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((512, 96)).astype(np.float32), rng.standard_normal((8, 96)).astype(np.float32)
    codes = [
        gptq.quantize(w, gptq.hessian(x), "int4-g32", block_size=size).quantized.arrays["codes"] for size in (32, 96)
    ]
    share = float((codes[0] != codes[1]).mean())
    return Finding(
        f"{default}; a third of the block changes {100 * share:.2f} % of the packed codes",
        equal(default, 128),
        {"block_size": default, "codes_changed": share},
        source="gptq.py of the paper's authors",
    )


@claim("gptq", "Group size 128 adds about 0.25 bits a weight, so INT4 g128 is 4.25 bits.")
def int4_g128_is_4_25_bits(proof: Evidence) -> Finding:
    """Layouts in use: packed zero-point, no zero-point, zero-point in float16."""
    layouts = {
        "packed 4-bit zero-point (GPTQ, AWQ)": find_format("int4-g128").bits_per_weight(SHAPE),
        "symmetric (compressed-tensors)": find_format("int4-g128-sym").bits_per_weight(SHAPE),
        "float16 zero-point (TinyChat, HQQ)": 4 + (16 + 16) / 128,
    }
    return Finding(
        ", ".join(f"{bits:.5g} {name}" for name, bits in layouts.items()),
        every(equal(bits, 4.25, 1e-3) == "holds" for bits in layouts.values()),
        layouts,
        "only where the zero-point is stored in float16 as well",
    )


@claim("gptq", "Quantizing takes minutes to hours, once.")
def minutes_to_hours(proof: Evidence) -> Finding:
    """Published times between one minute and one day."""
    return Finding(
        f"{min(MINUTES.values()):g} minutes (1.7B) to {max(MINUTES.values()) / 60:.1f} hours (175B)",
        within(MINUTES.values(), 1, 24 * 60),
        MINUTES,
        source="GPTQ paper, one A100",
    )


@claim("gptq", "Calibration uses about 128 examples.")
def calibration_of_128_examples(proof: Evidence) -> Finding:
    """Samples in the code of the papers: GPTQ 128 x 2048 tokens, AWQ 128 x 512."""
    samples = {"GPTQ": 128, "AWQ": 128}
    return Finding(
        f"{samples['GPTQ']} x 2048 tokens (GPTQ), {samples['AWQ']} x 512 (AWQ)",
        within(samples.values(), 100, 160),
        {f"{name} samples": count for name, count in samples.items()},
        source="gptq's datautils.py and llm-awq's calib_data.py, defaults",
    )
