"""What the checkpoint formats share. A layout describes the tensors of one Linear layer [n, k] in a safetensors file.

Every layout offers the same names::

    from_config(config), config()   the `quantization_config` of config.json that declares it, read and written
    marker                          the tensor that only a quantized layer has
    slots(n, k)                     (required, optional): the tensors, each with its shape and types
    shape(tensors)                  (n, k), from the tensors alone
    problems(tensors)               what is wrong with names, types and shapes
    read(tensors), write(q)         Tensors <-> Quantized
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from refquant import ops
from refquant.errors import BadFile, BadInput
from refquant.formats import file_tensor
from refquant.formats.file_tensor import FLOATS, Slots, Tensors
from refquant.grids import IntGrid, as_grid
from refquant.quantized import Quantized, find_format


def int_grid(q: Quantized, what: str) -> IntGrid:
    """Return the uniform grid of `q`; raise `BadInput` when its format is another one."""
    if find_format(q.format).family != "int":
        raise BadInput(f"{what} holds integer codes with scales; {q.format} is another kind of format")
    return as_grid(q.format)


def number(config: dict, names: tuple[str, ...], what: str, default=None, kinds=(int,)):
    """Return the first of `names` that `config` has, of one of the `kinds`; raise `BadFile` for another kind."""
    value = next((config[name] for name in names if config.get(name) is not None), default)
    if type(value) not in kinds:
        raise BadFile(f"{what}: {names[0]} must be {' or '.join(kind.__name__ for kind in kinds)}, got {value!r}")
    return value


def group_size(value) -> int | None:
    """Return a group size as `IntGrid` takes it: None for the whole row, which files write as -1."""
    if value == -1:
        return None
    if not 0 < value < 2**31:
        raise BadFile(f"group_size must be a positive integer, or -1 for the whole row, got {value}")
    return value


def check_groups(g_idx: np.ndarray, groups: int, what: str) -> np.ndarray:
    """Return `g_idx` as int32; raise `BadFile` when a group does not exist."""
    if g_idx.min() < 0 or g_idx.max() >= groups:
        at = int(np.argmax((g_idx < 0) | (g_idx >= groups)))
        raise BadFile(f"{what}: g_idx[{at}] is {g_idx[at]}; there are {groups} groups, numbered from 0")
    return g_idx.astype(np.int32)


def other_shape(model: tuple[int, int] | None, found: tuple[int, int]) -> list[str]:
    """Return the problem that a layer is not of the model's shape, if that is known."""
    if model in (None, found):
        return []
    return [f"the tensors are of a layer {list(found)} (out, in), the model's is {list(model)}"]


class Layout:
    """The part that all layouts have in common. `zero_domain` says what kind of number a zero-point is in the file."""

    name: ClassVar[str]
    marker: ClassVar[str]
    zero_domain: ClassVar[str]

    def slots(self, n: int, k: int) -> tuple[Slots, Slots]:
        """Tensors of a layer [n, k]: (required, optional); `BadInput` for a size that the format cannot hold."""
        raise NotImplementedError

    def shape(self, tensors: Tensors) -> tuple[int, int]:
        """Size (n, k) of the layer, from the tensors alone; `BadFile` when they cannot tell."""
        raise NotImplementedError

    def problems(self, tensors: Tensors, shape: tuple[int, int] | None = None) -> list[str]:
        """Return what is wrong with names, types and shapes, in words; `shape` is the model's own (n, k), if known."""
        try:
            n, k = self.shape(tensors)
            required, optional = self.slots(n, k)
        except (BadFile, BadInput) as problem:
            return [str(problem)]
        return file_tensor.problems(tensors, required, optional) + other_shape(shape, (n, k))

    def check(self, tensors: Tensors) -> tuple[int, int]:
        """Return (n, k); raise `BadFile` with every problem."""
        if found := self.problems(tensors):
            raise BadFile(f"{self.name}: " + "; ".join(found))
        return self.shape(tensors)

    def read(self, tensors: Tensors) -> Quantized:
        """Return the layer that these tensors hold; `BadFile` when they are not what the layout says."""
        raise NotImplementedError

    def write(self, q: Quantized) -> Tensors:
        """Return the tensors of `q`; `BadInput` for what the layout cannot hold."""
        raise NotImplementedError

    def weight_shape(self, tensors: Tensors) -> tuple[int, int]:
        """Size (n, k) of a layout whose `weight` has the layer's own shape."""
        dims = tensors["weight"].shape if "weight" in tensors else ()
        if len(dims) != 2 or 0 in dims:
            raise BadFile(f"{self.name}: weight must be [out, in], got {list(dims)}")
        return dims[0], dims[1]

    def of_format(self, q: Quantized, name: str) -> dict:
        """Arrays of `q`; `BadInput` unless it has the format `name`."""
        if q.format != name:
            raise BadInput(f"{self.name}: this checkpoint is {name}, the layer {q.format}")
        return q.arrays


@dataclass(frozen=True)
class GridLayout(Layout):
    """A layout whose layers are all on one `IntGrid`."""

    bits: int
    group_size: int | None
    sym: bool

    zero_domain: ClassVar[str] = "integer"

    @property
    def grid(self) -> IntGrid:
        """The grid."""
        return IntGrid(self.bits, self.group_size, self.sym)

    def fields(self, q: Quantized) -> dict:
        """Unpack `q`; raise `BadInput` unless it is on this layout's grid."""
        if int_grid(q, self.name).name != self.grid.name:
            raise BadInput(f"{self.name}: this checkpoint is {self.grid.name}, the layer {q.format}")
        return ops.unpack(q)

    def quantized(self, shape, codes, scales, zeros=None, g_idx=None) -> Quantized:
        """Pack numbers read from a file; scales that are not finite are refused."""
        if not np.isfinite(scales).all():
            raise BadFile(f"{self.name}: scales hold NaN or infinity")
        fields = {"codes": codes, "scales": np.ascontiguousarray(scales), "zeros": zeros, "g_idx": g_idx}
        return ops.pack(fields, self.grid.name, shape)


def scales_tensor(scales: np.ndarray, what: str, allowed: tuple[str, ...] = FLOATS):
    """Scales in a type of the file that holds them exactly."""
    return file_tensor.of_floats(scales, allowed, f"{what}: scales")


def ordinary_groups(fields: dict, grid: IntGrid) -> bool:
    """Whether column j is in group j // group_size, so that no map needs to be stored."""
    return np.array_equal(fields["g_idx"], grid.group_index(len(fields["g_idx"])))
