"""GGUF's block formats: random bytes and crafted blocks decoded by ggml and gguf-py, crafted rows encoded by ggml."""

import ggml
import gguf
import numpy as np
from rows import CRAFTED
from suite import GGML, GGUF_PY, Suite

# format: where its float16 numbers lie in a block (in bytes)
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,), "TQ1_0": (52,), "TQ2_0": (64,),
    "MXFP4": (),
}  # fmt: skip
# format: (offset, bytes) of its codes, filled with a ramp in the case `ramp`
CODES = {
    "Q4_0": (2, 16), "Q4_1": (4, 16), "Q5_0": (6, 16), "Q5_1": (8, 16), "Q8_0": (2, 32), "Q2_K": (16, 64),
    "Q3_K": (32, 64), "Q4_K": (16, 128), "Q5_K": (48, 128), "Q6_K": (0, 128), "IQ4_NL": (2, 16), "IQ4_XS": (8, 128),
    "TQ1_0": (0, 48), "TQ2_0": (0, 64), "MXFP4": (1, 16),
}  # fmt: skip
MISTAKES = {"Q3_K": (27,), "Q4_K": (28, 33), "Q2_K": (29,), "Q5_K": (30, 31)}
SPECIAL = {
    "Q3_K": "scales read as 4-bit numbers, or the mask bit taken the wrong way",
    "Q4_K": "scales and mins of the later sub-blocks taken from the wrong bits, or left out",
    "Q2_K": "codes in plain order, or scale and minimum in the wrong half of their byte",
    "Q5_K": "nibbles in plain order, or the fifth bit from the wrong place",
    "Q6_K": "codes in plain order, or scales read as unsigned",
}


def decoded(blocks, name):
    """What ggml and gguf-py agree on; NaN is allowed to have any payload."""
    want = ggml.dequantize(blocks, name)
    with np.errstate(all="ignore"):
        other = gguf.quants.dequantize(blocks, ggml.TYPES[name]).astype(np.float32).reshape(want.shape)
    nan = np.isnan(want)
    assert np.array_equal(nan, np.isnan(other)), name
    assert np.array_equal(want[~nan].view(np.uint32), other[~nan].view(np.uint32)), name
    return want


def sane(rng, blocks, name):
    """The same blocks with float16 numbers of ordinary size, of both signs."""
    size = ggml.sizes(name)[1]
    view = blocks.reshape(-1, size)
    for place in HALVES[name]:
        values = (rng.uniform(0.5, 2, len(view)) * rng.choice([-1, 1], len(view)) / 64).astype(np.float16)
        view[:, place : place + 2] = values[:, None].view(np.uint8)
    if name == "MXFP4":
        view[:, 0] = rng.integers(118, 136, len(view))
    return blocks


def gguf_decode():
    """Bytes to weights."""
    suite = Suite("gguf-decode", "Blocks of GGUF files to float32 weights, bit by bit: ggml's and gguf-py's result.")
    programs = (GGML, GGUF_PY)
    for seed, name in enumerate(HALVES):
        rng = np.random.default_rng(300 + seed)
        weights, size = ggml.sizes(name)
        per_row = 3 if weights == 256 else 9  # 768 or 288 weights: more than one block, 288 no multiple of 256
        blocks = sane(rng, rng.integers(0, 256, (2, per_row * size), np.uint8), name)
        own = MISTAKES.get(name, (35,))
        flags = {"MultiBlock", "RandomBytes"} | ({"NonMultiple256"} if weights == 32 else set())
        suite.add(
            "random", "dequantize", name, (2, per_row * weights), {"blocks": blocks}, {"w": decoded(blocks, name)},
            "bits", f"any field in the wrong place: {SPECIAL.get(name, 'codes in plain order, a wrong block size')}",
            programs, {*own, 32, *([48] if weights == 32 else [])}, flags,
        )  # fmt: skip
        ramp = np.zeros((1, 2 * size), np.uint8)
        at, count = CODES[name]
        for block, step in zip(ramp.reshape(2, size), (1, 37), strict=True):
            block[:] = 0x5A if weights == 256 else 0
            block[at : at + count] = np.arange(count) * step % 256
        ramp = sane(rng, ramp, name)
        suite.add(
            "ramp", "dequantize", name, (1, 2 * weights), {"blocks": ramp}, {"w": decoded(ramp, name)}, "bits",
            "codes read in another order, or as two's complement: every byte of codes is different",
            programs, {*own, 32}, {"Ramp", "MultiBlock"},
        )  # fmt: skip
        zero = np.zeros((1, 2 * size), np.uint8)
        suite.add(
            "zero-bytes", "dequantize", name, (1, 2 * weights), {"blocks": zero}, {"w": decoded(zero, name)}, "bits",
            "a block of zero bytes, which is legal: its scale is 0", programs, {20}, {"ZeroGroup"},
        )  # fmt: skip
        if HALVES[name]:
            odd = rng.integers(0, 256, (6, size), np.uint8)
            for row, half in zip(odd, (0x7C00, 0xFE01, 0x0001, 0x83FF, 0x8000, 0x7BFF), strict=True):
                for place in HALVES[name]:
                    row[place : place + 2] = np.array([half], "<u2").view(np.uint8)
            suite.add(
                "odd-scales", "dequantize", name, (6, weights), {"blocks": odd}, {"w": decoded(odd, name)}, "bits",
                "a scale that is infinite, NaN, subnormal, -0 or the largest float16",
                programs, {41}, {"NaNScale", "SubnormalScale"},
            )  # fmt: skip
    rng = np.random.default_rng(330)
    for name in ("F16", "BF16"):
        every = np.arange(65536, dtype=np.uint16).view(np.uint8).reshape(64, 2048)
        suite.add(
            "every-code", "dequantize", name, (64, 1024), {"blocks": every}, {"w": decoded(every, name)}, "bits",
            "subnormals, infinities or NaN widened wrongly: all 65,536 codes", programs, {41}, {"EveryCode"},
        )  # fmt: skip
    numbers = rng.normal(size=(2, 40)).astype(np.float32)
    blocks = numbers.view(np.uint8)
    suite.add(
        "plain", "dequantize", "F32", (2, 40), {"blocks": blocks}, {"w": numbers}, "bits",
        "the uncompressed type of norms and biases", programs, {35}, {"Ramp"},
    )  # fmt: skip
    suite.add(
        "unknown-type", "dequantize", "Q9_Z", (2, 40), {"blocks": blocks}, {}, "reject",
        "a type that does not exist is read as float32 instead of refused: no ggml type has this name",
        (GGUF_PY,), {34}, {"UnknownType"},
    )  # fmt: skip
    short = rng.integers(0, 256, (2, 3 * 144 - 5), np.uint8)
    suite.add(
        "cut-off", "dequantize", "Q4_K", (2, 768), {"blocks": short}, {}, "reject",
        "rows of blocks that end within a block are read, past their end", (GGUF_PY,), {32}, {"Truncated"},
    )  # fmt: skip
    return suite


ENCODED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
           "TQ1_0", "TQ2_0", "MXFP4")  # fmt: skip
WEIGHTED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
ORDINARY = ("constant", "mixed signs", "one sign", "far from zero", "whole numbers", "one weight", "sparse",
            "two values", "a ramp", "zero sub-blocks")  # fmt: skip
TINY = ("zero", "negative zero", "denormals", "1e-38", "1e-20", "near the smallest float16")


def craft(rng, kinds, repeat=1):
    """One row of 256 for each kind."""
    with np.errstate(all="ignore"):
        w = np.array([CRAFTED[kind](rng) for kind in kinds for _ in range(repeat)], np.float64)
    return np.clip(w, -3e4, 3e4).astype(np.float32)


def contracted(rng):
    """Weights [8, 32] whose Q4_0 codes differ between x * (1 / d) + 8.5 rounded twice and rounded once."""
    found = []
    while len(found) < 8:
        peak = np.float32(rng.uniform(0.5, 2))
        inverse = np.float32(1) / (peak / np.float32(-8))
        x = (np.arange(-7, 8, dtype=np.float32) + np.float32(0.5)) / inverse
        x = (x[:, None] + np.spacing(x)[:, None] * np.arange(-8, 9, dtype=np.float32)).ravel()
        twice = (x * inverse + np.float32(8.5)).astype(np.int32)
        once = (x.astype(np.float64) * inverse + 8.5).astype(np.float32).astype(np.int32)
        differ = x[(twice != once) & (np.abs(x) < peak)]
        if len(differ):
            found.append(np.resize(np.append(peak, differ), 32))
    return np.array(found, np.float32)


def gguf_encode():
    """Weights to bytes."""
    suite = Suite("gguf-encode", "Weights to blocks of GGUF files: the error must not exceed that of ggml's own bytes.")
    rng = np.random.default_rng(350)
    plain = (rng.standard_normal((8, 768)) * 0.02).astype(np.float32)
    heavy = (rng.standard_t(3, (4, 768)) * 0.02).astype(np.float32)
    crafted, tiny = craft(rng, ORDINARY, 2), craft(rng, TINY, 2)
    importance = rng.chisquare(1, 768).astype(np.float32)
    wide = (rng.standard_normal((6, 288)) * 0.02).astype(np.float32)
    for name in ENCODED:
        cases = [
            ("normal", plain, None, {38, 40}, {"FmaSensitive"}, "a search that ends early, or rounds the wrong way"),
            ("heavy-tailed", heavy, None, {38}, {"FmaSensitive"}, "a scale that ignores outliers"),
            ("crafted", crafted, None, {20}, {"ConstantGroup", "TieRounding"},
             "constant, one-sided, sparse and far-from-zero blocks"),
            ("near-zero", tiny, None, {37, 20}, {"ZeroGroup", "SubnormalScale"},
             "zeros, denormals, 1e-38 and 1e-20: a division by a scale that is zero, or whose inverse is infinite"),
        ]  # fmt: skip
        if ggml.sizes(name)[0] == 32:
            cases.append(("width-288", wide, None, {48, 36}, {"NonMultiple256"}, "a width that is no multiple of 256"))
        if name in WEIGHTED:
            some = np.where(np.arange(768) // 32 % 2 == 0, importance, 0).astype(np.float32)
            cases += [
                ("importance", plain, importance, {39}, {"Importance"}, "an importance that is ignored or misplaced"),
                ("importance-zero", plain, np.zeros(768, np.float32), {39}, {"Importance"},
                 "columns that no input reached: sums of importance that are zero, then divided by"),
                ("importance-half", plain, some, {39}, {"Importance"}, "sub-blocks whose importance is zero"),
            ]  # fmt: skip
        for id, w, weight, mistakes, flags, catches in cases:
            blocks = ggml.quantize(w, name, weight)
            inputs = {"w": w} if weight is None else {"w": w, "importance": weight}
            suite.add(
                id, "quantize", name, w.shape, inputs, {"blocks": blocks}, "error", catches, (GGML,), mistakes, flags,
                tolerance={"error": 0.01},
            )  # fmt: skip
        suite.add(
            "bytes", "quantize", name, plain.shape, {"w": plain}, {"blocks": ggml.quantize(plain, name)}, "bits",
            "float32 arithmetic that is contracted (FMA) or reordered, where ggml's very bytes are promised",
            (GGML,), {38}, {"FmaSensitive"}, needs="ggml bytes",
        )  # fmt: skip
    near = contracted(rng)
    suite.add(
        "bytes-fma", "quantize", "Q4_0", near.shape, {"w": near}, {"blocks": ggml.quantize(near, "Q4_0")}, "bits",
        "a multiplication and an addition contracted (FMA), at weights where that gives another code",
        (GGML,), {38}, {"FmaSensitive", "TieRounding"}, needs="ggml bytes",
    )  # fmt: skip
    bad = importance.copy()
    bad[5] = np.nan
    suite.add(
        "importance-nan", "quantize", "Q4_K", plain.shape, {"w": plain, "importance": bad},
        {"blocks": ggml.quantize(plain, "Q4_K")}, "error", "an importance with NaN in it makes NaN blocks",
        (GGML,), {39}, {"Importance"}, may_reject=True, tolerance={"error": 0.2},
    )  # fmt: skip
    suite.add(
        "width-300", "quantize", "Q4_K", (2, 300), {"w": plain[:2, :300]}, {}, "reject",
        "a width that is not whole blocks is padded or cut in silence", (GGUF_PY,), {36}, {"NonMultiple256"},
    )  # fmt: skip
    return suite


SUITES = (gguf_decode, gguf_encode)
