"""What the small blocks of the absorption cases compute, in float64: the function that must not change."""

import numpy as np


def output(kind: str, tensors: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Output of a block for inputs x [tokens, k]; `kind` as in the cases, and each is written out below."""
    t = {name: np.asarray(array, np.float64) for name, array in tensors.items()}
    x = np.asarray(x, np.float64)
    if "norm" in kind:
        centred = x - x.mean(axis=1, keepdims=True) if kind == "layernorm" else x
        unit = centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + 1e-6)
        weight = 1 + t["norm"] if kind == "gemma-norm" else t["norm"]
        y = unit * weight + t.get("norm_bias", 0)
        parts = [y @ t[name].T for name in ("w0", "w1") if name in t]
    elif kind == "linear":
        parts = [(x @ t["up"].T + t["up_bias"]) @ t["down"].T]
    elif kind == "fused-qkv":
        q, k, v = np.split(x @ t["qkv"].T + t["qkv_bias"], 3, axis=1)
        parts = [q, k, v @ t["o"].T]
    else:  # grouped-query: each of two heads of v is read by two heads
        v = (x @ t["v"].T + t["v_bias"]).reshape(len(x), 2, 4)
        parts = [np.repeat(v, 2, axis=1).reshape(len(x), 16) @ t["o"].T]
    return np.concatenate(parts, axis=1)
