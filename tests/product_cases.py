"""Formats to multiply with on a GPU, and random weights in them."""

import numpy as np

import refquant as rq
from refquant.quantized import Quantized, find_format

FLOATS = ("F32", "F16", "BF16")
GRIDS = ("int8-g128", "int8-row-sym", "int4-g128", "int4-g128-sym", "int4-g32", "int4-g64-sym", "int4-g16", "int5-row")
GRIDS += ("int4-g256", "int4-g512-sym", "int3-g128", "int3-g32-sym", "int2-g64", "int2-row", "int4-g24", "int8-g7")
OTHERS = ("fp8-e4m3", "fp8-e4m3-tensor", "fp8-e4m3-block", "fp8-e5m2", "nf4", "nf4-dq", "nf4-b128", "mxfp4", "nvfp4")
FIELDS = {"d", "dmin", "m"}


def quantized(name, n, k, seed=None):
    """Random weights, by RTN; of the block formats, random codes with finite scales."""
    rng = np.random.default_rng(seed)
    item = find_format(name)
    if not item.stream:
        return rq.quantize((rng.standard_normal((n, k)) * 0.02).astype(np.float32), name)
    if name in FLOATS:
        return rq.quantize(rng.standard_normal((n, k)).astype(np.float32), name)
    data = rng.integers(0, 256, item.nbytes((n, k)), dtype=np.uint8)
    fields = rq.ops.unpack(Quantized.from_bytes(data, name, (n, k)))
    for key in fields.keys() & FIELDS:
        fields[key] = (rng.standard_normal(fields[key].shape) * 0.01).astype(np.float16)
    if "e" in fields:
        fields["e"] = rng.integers(100, 130, fields["e"].shape, dtype=np.uint8)
    return rq.ops.pack(fields, name, (n, k))
