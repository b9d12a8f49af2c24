"""Between matrices and blocks: registers a search, checks its input, and turns rows into the layout of `arithmetic`.

A search is written for weights [n, k] and importance [n, k] (or None) and returns the fields of its format. The
importance of a file is one value a column; it is repeated for every row here.
"""

from collections.abc import Callable

import numpy as np

from refquant import ops
from refquant.errors import BadInput

SLAB = 1 << 18  # weights searched at a time, so that the intermediate arrays stay in the cache


def search(name: str) -> Callable:
    """Register the decorated function as the search of the format `name`."""

    def register(function):
        @ops.part("search", name)
        def run(w, format, importance=None):  # noqa: A002 (ops calls it that)
            """Choose the fields of `w`, float32 [n, k], slab by slab."""
            check_importance(importance)
            rows = max(1, SLAB // w.shape[1])
            parts = []
            with np.errstate(all="ignore"):  # overflow and 0/0 have their defined outcome, as in C
                for i in range(0, len(w), rows):
                    slab = np.ascontiguousarray(w[i : i + rows], np.float32)
                    weight = None if importance is None else np.broadcast_to(importance, slab.shape)
                    parts.append(function(slab, weight))
            return {field: np.concatenate([part[field] for part in parts]) for field in parts[0]}

        return function

    return register


def check_importance(importance: np.ndarray | None) -> None:
    """Raise `BadInput` for an importance that is NaN, infinite or negative. Zeros are allowed: "does not matter"."""
    if importance is None:
        return
    bad = ~(np.isfinite(importance) & (importance >= 0))
    if bad.any():
        column = int(np.argmax(bad))
        raise BadInput(
            f"importance: {int(bad.sum())} of {importance.size} values are NaN, infinite or negative, the first "
            f"({importance[column]}) in column {column}; expected mean squared activations"
        )


def to_blocks(values: np.ndarray, weights: int) -> np.ndarray:
    """[n, k] as [weights, blocks], blocks of all rows side by side."""
    return np.ascontiguousarray(values.reshape(-1, weights).T)


def to_sub_blocks(values: np.ndarray, size: int, weights: int = 256) -> np.ndarray:
    """[n, k] as [size, sub-blocks of a block, blocks]."""
    return np.ascontiguousarray(values.reshape(-1, weights // size, size).T)


def to_rows(values: np.ndarray, n: int, dtype) -> np.ndarray:
    """Codes [g, blocks] or [size, sub-blocks, blocks] as [n, k], the inverse of the two above."""
    return np.ascontiguousarray(values.T).reshape(n, -1).astype(dtype)


def per_block(values: np.ndarray, n: int, dtype=None) -> np.ndarray:
    """Numbers [blocks] or [sub-blocks, blocks] as [n, blocks of a row] or [n, blocks of a row, sub-blocks]."""
    return np.ascontiguousarray(values.T).reshape(n, -1, *values.shape[:-1]).astype(dtype or values.dtype)
