"""The methods by name, and the rows that each adds to the lesson's table. Methods register themselves when imported."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from refquant import ops
from refquant.errors import BadInput, UnknownName
from refquant.quantized import Quantized, find_format


@dataclass(frozen=True)
class Row:
    """A line of the table that `refquant compare` prints: what to run, and the lesson's two columns about its use.

    `options` go to the method, and are named under the table.
    """

    label: str
    method: str
    grid: str
    hardware: str
    use_case: str
    options: dict = field(default_factory=dict, hash=False)


@dataclass
class LayerInputs:
    """What calibration learned about the inputs x [tokens, in] of one Linear layer. Holds only what a method needs.

    hessian : as `gptq.Hessian`; its `H` [in, in] is 2/tokens times the sum of x xᵀ.
    mean_square : float64 [in], mean of x²: the importance of each column.
    mean_abs : float64 [in], mean of |x|: AWQ's measure of a channel.
    x : float32 [tokens, in], a sample.
    """

    tokens: int = 0
    hessian: object | None = None
    mean_square: np.ndarray | None = None
    mean_abs: np.ndarray | None = None
    x: np.ndarray | None = None


@dataclass(frozen=True)
class Method:
    """How one Linear layer is quantized: `layer(w, grid, inputs, **options) -> Quantized`.

    `needs` names the `LayerInputs` fields that calibration must fill; empty for a method that looks at weights only.
    `tokens` is how many calibration tokens it has use for, where that is few. `accelerated`: it takes a `backend`.
    """

    name: str
    layer: Callable[..., Quantized]
    needs: frozenset[str] = frozenset()
    tokens: int | None = None
    accelerated: bool = False
    rows: tuple[Row, ...] = field(default=())


_METHODS: dict[str, Method] = {}


def register_method(method: Method) -> Method:
    """Add a method; its rows appear in the table in the order of registration."""
    _METHODS[method.name] = method
    return method


def find_method(name: str) -> Method:
    """Return the method called `name`; raise `UnknownName`, which lists the known ones."""
    if name not in _METHODS:
        raise UnknownName("method", name, _METHODS)
    return _METHODS[name]


def defaults(name: str, grid: str | None = None) -> tuple[str, dict]:
    """Grid and options with which the table measures a method: those of its row for `grid`, or of its first row."""
    own = find_method(name).rows
    row = next((row for row in own if row.grid == grid), own[0] if own else None)
    return grid or (row.grid if row else "int4-g128"), dict(row.options) if row else {}


def rows() -> list[Row]:
    """Every row of the table, in the order in which the methods were registered."""
    return [row for method in _METHODS.values() for row in method.rows]


def own_format(family: str) -> Callable[..., Quantized]:
    """`Method.layer` of a method that is one family of formats (`nf4`, `fp8`): their own rule, without calibration."""

    def layer(w, grid, inputs):
        if find_format(grid.name).family != family:
            raise BadInput(f"the method {family} quantizes to its own formats, not to {grid.name}; use 'rtn' for that")
        return ops.quantize(w, grid.name)

    return layer


def gpu_rows(method: str, label: str, use_cases: dict[str, str], **options) -> tuple[Row, ...]:
    """Rows for the grids of a method whose checkpoints GPU servers load."""
    return tuple(Row(f"{label} {grid}", method, grid, "GPU", use, options) for grid, use in use_cases.items())
