"""Looking into bytes: refquant's own decoder and fields, to measure the error of an encoder and to explain a failure.

No expected result comes from here.
"""

import numpy as np

from refquant import ops
from refquant.codebooks import NF4 as _NF4
from refquant.errors import RefquantError
from refquant.ggml_types import TYPES, ggml_type
from refquant.quantized import Quantized

NF4 = _NF4.values


def is_stream(fmt: str) -> bool:
    """Whether a format is one stream of bytes."""
    return fmt in TYPES


def decode(data: np.ndarray, fmt: str, shape) -> np.ndarray:
    """Weights float32 [n, k] of blocks."""
    return ops.dequantize(Quantized.from_bytes(data, fmt, tuple(shape)))


def sizes(fmt: str) -> tuple[int, int]:
    """Weights and bytes of a block."""
    kind = ggml_type(fmt)
    return kind.weights, kind.bytes


def fields(data: np.ndarray, fmt: str) -> dict[str, np.ndarray] | None:
    """Fields of one block, uint8 [bytes]: name -> values; None where the format has none to show."""
    weights, _ = sizes(fmt)
    try:
        found = ops.unpack(Quantized.from_bytes(np.ascontiguousarray(data), fmt, (1, weights)))
    except RefquantError:
        return None
    return {name: np.asarray(values)[0].ravel() for name, values in found.items()}
