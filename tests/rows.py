"""Weights and importances to quantize: ordinary ones, and the crafted ones at which encoders have gone wrong.

`CASES.md` lists the mistakes; every crafted kind below is one block of 256 weights, drawn anew for each block.
"""

import numpy as np

TINY = np.float32(2.0**-149)  # the smallest float32


def gaussian(rng, n, k):
    return rng.standard_normal((n, k)).astype(np.float32) * np.float32(0.02)


def heavy_tailed(rng, n, k):
    return (rng.standard_t(3, (n, k)) * 0.02).astype(np.float32)


def _pattern(kind):
    def register(function):
        CRAFTED[kind] = function
        return function

    return register


CRAFTED = {
    "zero": lambda rng: np.zeros(256),
    "negative zero": lambda rng: np.where(rng.random(256) < rng.choice([0.5, 1]), -0.0, 0.0),
    "constant": lambda rng: np.full(256, rng.standard_normal() * 10.0 ** rng.integers(-8, 5)),
    "one huge value": lambda rng: np.where(
        np.arange(256) == rng.integers(256),
        rng.choice([-1, 1]) * 10.0 ** rng.uniform(3, 38.5),
        rng.standard_normal(256),
    ),
    "denormals": lambda rng: rng.integers(-(2**23), 2**23, 256) * float(TINY) * rng.choice([1, 2**-10, 2**-20]),
    "1e-38": lambda rng: rng.standard_normal(256) * 1e-38,
    "1e-20": lambda rng: rng.standard_normal(256) * 1e-20,
    "any scale": lambda rng: rng.standard_normal(256) * 10.0 ** rng.uniform(-45, 37.5),
    "any scale in each sub-block": lambda rng: (
        rng.standard_normal((16, 16)) * 10.0 ** rng.uniform(-30, 18, (16, 1))
    ).ravel(),
    "mixed signs": lambda rng: rng.choice([-1.0, 1.0], 256) * 10.0 ** rng.uniform(-5, 5),
    "one sign": lambda rng: rng.choice([-1, 1]) * np.abs(rng.standard_normal(256)),
    "far from zero": lambda rng: rng.choice([-1, 1]) * (100 + rng.standard_normal(256)),
    "exact ties": lambda rng: (
        rng.integers(-2 * (top := rng.choice([3, 7, 15, 31, 63, 127])), 2 * top + 1, 256)
        / 2
        * 2.0 ** rng.integers(-12, 3)
    ),
    "whole numbers": lambda rng: rng.integers(-128, 129, 256) * 2.0 ** rng.integers(-12, 3),
    "near the largest float16": lambda rng: (
        (rng.choice([1, 3, 4, 7, 8, 15, 16, 31, 32, 63, 127, 945, 1953, 4032]) * 65519.9 * rng.uniform(0.99, 1.01, 256))
        * rng.choice([-1, 1], 256)
    ),
    "near the smallest float16": lambda rng: rng.standard_normal(256) * 2.0 ** rng.uniform(-30, -14),
    "powers of two, nearly": lambda rng: np.nextafter(
        np.ldexp(rng.choice([-1.0, 1], 256), rng.integers(-40, 40, 256)).astype(np.float32),
        np.float32(rng.choice([-np.inf, np.inf])),
    ),
    "one weight": lambda rng: np.where(np.arange(256) == rng.integers(256), rng.standard_normal(), 0),
    "one weight in each 16": lambda rng: np.where(np.arange(256) % 16 == rng.integers(16), rng.standard_normal(256), 0),
    "sparse": lambda rng: np.where(rng.random(256) < 0.1, rng.standard_normal(256), 0),
    "two values": lambda rng: rng.choice(rng.standard_normal(2), 256),
    "three values": lambda rng: rng.choice([-1.0, 0.0, 1.0], 256) * rng.random(),
    "a ramp": lambda rng: np.linspace(*rng.standard_normal(2), 256),
    "zero sub-blocks": lambda rng: (rng.standard_normal((16, 16)) * rng.integers(0, 2, (16, 1))).ravel(),
}


def crafted(rng, n, k):
    """Rows of blocks of every crafted kind in turn; `k` is a multiple of 256."""
    kinds = list(CRAFTED.values())
    with np.errstate(all="ignore"):
        w = np.array([kinds[i % len(kinds)](rng) for i in range(n * k // 256)], np.float64)
        w = np.clip(w, -3.4e38, 3.4e38).astype(np.float32)
    order = rng.permutation(len(w))
    return w[order].reshape(n, k)


def _sub_blocks_of_zero(rng, k):
    return np.repeat(rng.integers(0, 2, -(-k // 16)), 16)[:k] * rng.chisquare(1, k)


IMPORTANCE = {
    "none": lambda rng, k: None,
    "ordinary": lambda rng, k: rng.chisquare(1, k),
    "ones": lambda rng, k: np.ones(k),
    "zero": lambda rng, k: np.zeros(k),
    "half zero": lambda rng, k: rng.chisquare(1, k) * (rng.random(k) < 0.5),
    "zero sub-blocks": _sub_blocks_of_zero,
    "one column in 16": lambda rng, k: rng.chisquare(1, k) * (np.arange(k) % 16 == rng.integers(16)),
    "one column in 64": lambda rng, k: rng.chisquare(1, k) * (np.arange(k) % 64 == rng.integers(64)),
    "huge": lambda rng, k: rng.chisquare(1, k) * 1e30,
    "tiny": lambda rng, k: rng.chisquare(1, k) * 1e-40,
    "any scale": lambda rng, k: 10.0 ** rng.uniform(-38, 18, k),
}


def importance(kind, rng, k):
    """Importance float32 [k] of this kind, or None."""
    values = IMPORTANCE[kind](rng, k)
    return None if values is None else values.astype(np.float32)


def from_file(path, rows, k):
    """Up to `rows` rows of width `k`, cut from the matrices of a .safetensors or .gguf file, embeddings left out."""
    if path.suffix == ".gguf":
        import gguf

        tensors = ((t.name, gguf.dequantize(t.data, t.tensor_type)) for t in gguf.GGUFReader(path).tensors)
    else:
        from safetensors.numpy import load_file

        tensors = load_file(path).items()
    parts, found = [], 0
    for name, w in tensors:
        if w.ndim == 2 and w.dtype.kind == "f" and "embd" not in name and "embedding" not in name and found < rows:
            parts.append(w.reshape(-1)[: w.size // k * k].reshape(-1, k).astype(np.float32))
            found += len(parts[-1])
    return np.concatenate(parts)[:rows]
