"""Likely mistakes in a quantized layer: the same tensors read as if its writer had made one, to see which fits better.

Two measures. Against the dense weights, the relative error: a reading with far less of it is the right one. Without
them, for asymmetric layers, how far the codes of a group are from its zero-point on average: weights are about as often
negative as positive, so a right zero-point lies near the mean code; one that is systematically off, or one of another
output, does not.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from refquant import ops
from refquant.errors import RefquantError
from refquant.formats.awq import AWQ, TinyChat, unpack_outputs
from refquant.formats.bits import unpack_words
from refquant.formats.compressed_float import FineGrainedFP8, FloatQuantized
from refquant.formats.compressed_int import PackQuantized
from refquant.formats.file_tensor import FileTensor, Tensors
from refquant.formats.gptq import GPTQ
from refquant.quantized import Quantized


def readings(layout, tensors: Tensors) -> Iterator[tuple[str, dict]]:
    """Other readings of a layer: a sentence, and fields codes, scales, zeros, g_idx (or `w`, the weights)."""
    if isinstance(layout, GPTQ):
        other = replace(layout, version=3 - layout.version, ignore_zeros=True)
        names = {1: "v1", 2: "v2"}
        yield (
            f"zero-points look like {names[other.version]} in a file that says {names[layout.version]}",
            fields(other, tensors),
        )
        if "g_idx" in tensors and not layout.desc_act:
            yield (
                "g_idx is an act-order map, in a file that says desc_act false",
                fields(replace(layout, desc_act=True, ignore_zeros=True), tensors),
            )
    if isinstance(layout, AWQ) and not isinstance(layout, TinyChat):
        ours = fields(layout, tensors)
        plain = {name: _plain(tensors[key].array) for name, key in (("codes", "qweight"), ("zeros", "qzeros"))}
        plain = {name: array.T for name, array in plain.items()}
        yield "nibbles look linear in a file that says awq gemm", ours | plain
        yield "the nibbles of qzeros look linear in a file that says awq gemm", ours | {"zeros": plain["zeros"]}
        yield "the nibbles of qweight look linear in a file that says awq gemm", ours | {"codes": plain["codes"]}
        minus = (unpack_outputs(tensors["qzeros"].array).T + 1) & 15
        yield "zero-points look one too small, as in GPTQ v1, in a file that says awq", ours | {"zeros": minus}
    if isinstance(layout, PackQuantized):
        ours = fields(layout, tensors)
        half = 1 << layout.bits - 1
        flipped = ours["codes"] ^ np.uint8(half)
        yield "codes look like two's complement, without 2^(bits - 1) added", ours | {"codes": flipped}
    if isinstance(layout, FloatQuantized | FineGrainedFP8):
        name = "weight_scale" if "weight_scale" in tensors else "weight_scale_inv"
        with np.errstate(divide="ignore"):
            inverse = (1 / tensors[name].floats().astype(np.float32)).astype(np.float32)
        w = ops.dequantize(layout.read(tensors | {name: FileTensor("F32", inverse)}))
        yield "scales look inverted: the file's divide, those of this format multiply", {"w": w}


def _plain(words: np.ndarray) -> np.ndarray:
    return unpack_words(words[..., None], 4, 8).reshape(len(words), -1)


def fields(layout, tensors: Tensors) -> dict:
    """Codes, scales, zeros, g_idx of a layer on a uniform grid; the weights alone of another."""
    if isinstance(layout, GPTQ):
        layout = replace(layout, ignore_zeros=True)
    q: Quantized = layout.read(tensors)
    found = ops.unpack(q)
    return found if "zeros" in found and "g_idx" in found else {"w": ops.dequantize(q)}


def weights(found: dict) -> np.ndarray:
    """Weights float32 [n, k] of fields."""
    if "w" in found:
        return found["w"]
    g = found["g_idx"]
    scales, zeros = (np.asarray(found[name], np.float32)[:, g] for name in ("scales", "zeros"))
    return (found["codes"].astype(np.float32) - zeros) * scales


def error(w: np.ndarray, dense: np.ndarray) -> float:
    """Relative error of the weights, the norm of the change over that of the dense ones; infinite for NaN."""
    with np.errstate(all="ignore"):
        change = float(np.linalg.norm(w.astype(np.float64) - dense) / (np.linalg.norm(dense.astype(np.float64)) or 1))
    return change if np.isfinite(change) else float("inf")


def imbalance(found: dict) -> float | None:
    """Mean distance of the mean code from the zero-point, over groups, in steps; None without zero-points."""
    if "zeros" not in found or found["codes"].size == 0:
        return None
    g, count = found["g_idx"], found["scales"].shape[1]
    sums = np.zeros((len(found["codes"]), count))
    np.add.at(sums.T, g, found["codes"].T.astype(np.float64))
    means = sums / np.maximum(np.bincount(g, minlength=count), 1)
    return float(np.abs(means.mean(axis=1) - np.asarray(found["zeros"], np.float64).mean(axis=1)).mean())


def likely(layout, tensors: Tensors, dense: np.ndarray | None) -> list[str]:
    """Sentences that name the likely mistake in a layer; empty where it reads best as declared."""
    try:
        ours = fields(layout, tensors)
    except RefquantError:
        return []
    measure = (lambda found: error(weights(found), dense)) if dense is not None else imbalance
    own = measure(ours)
    if own is None:
        return []
    best, words = own, None
    for sentence, found in readings(layout, tensors):
        try:
            value = measure(found)
        except (RefquantError, IndexError):
            continue
        if value is not None and value < best:
            best, words = value, sentence
    if words is None or best > own / 2 or (dense is None and own < 0.5):
        return []
    what = "relative error" if dense is not None else "mean distance of codes from the zero-point"
    return [f"{words} ({what} {own:.3g} as declared, {best:.3g} read so)"]
