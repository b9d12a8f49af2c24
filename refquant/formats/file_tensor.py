"""FileTensor: a tensor as a safetensors file holds it, in NumPy, which knows neither bfloat16 nor the eight-bit floats.

The type is safetensors' own name for it; the array holds the values where NumPy has that type, else their bits::

    F64 F32 F16   I64 I32 I16 I8   U64 U32 U16 U8   BOOL     NumPy's own
    BF16                                                     uint16, the upper half of a float32
    F8_E4M3 F8_E5M2 F8_E8M0                                  uint8

A checkpoint format describes a layer as `Tensors`: names within the layer ("qweight"), each with its FileTensor.
"""

from dataclasses import dataclass

import numpy as np

from refquant.errors import BadFile, BadInput

NUMPY = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "BF16": "uint16",
    "F8_E4M3": "uint8",
    "F8_E5M2": "uint8",
    "F8_E8M0": "uint8",
}
FLOATS = ("F16", "BF16", "F32")  # what scales come in


@dataclass(frozen=True, eq=False)
class FileTensor:
    """A tensor: safetensors' name of its type, and the array (values or bits, see the module)."""

    dtype: str
    array: np.ndarray

    def __post_init__(self):
        if self.dtype not in NUMPY:
            raise BadInput(f"safetensors has no type {self.dtype!r}; it has {', '.join(NUMPY)}")
        if self.array.dtype != NUMPY[self.dtype]:
            raise BadInput(f"{self.dtype} is held as {NUMPY[self.dtype]}, got {self.array.dtype}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.array.shape

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.array.nbytes

    def floats(self) -> np.ndarray:
        """Values of an F16 tensor as float16, of a BF16 or F32 tensor as float32: exact."""
        if self.dtype == "BF16":
            return (self.array.astype(np.uint32) << 16).view(np.float32)
        if self.dtype not in FLOATS:
            raise BadInput(f"expected {', '.join(FLOATS)}, got {self.dtype}")
        return self.array


Tensors = dict[str, FileTensor]
Slots = dict[str, tuple[tuple[int, ...], tuple[str, ...]]]  # name -> (shape, the types it may have)


def of(array: np.ndarray) -> FileTensor:
    """Wrap an array whose NumPy type is safetensors' type."""
    names = [name for name, dtype in NUMPY.items() if dtype == array.dtype.name]
    if not names:
        raise BadInput(f"safetensors cannot hold {array.dtype}")
    return FileTensor(names[0], np.asarray(array, order="C"))


def of_floats(values: np.ndarray, allowed: tuple[str, ...] = FLOATS, what: str = "scales") -> FileTensor:
    """Store floats in the narrowest of the `allowed` types that holds every one of them exactly.

    float16 stays what it is; float32 is what bfloat16 was read as, so that is tried first.
    """
    values = np.ascontiguousarray(values)
    wide = values.astype(np.float32)
    order = ("F16", "F32") if values.dtype == np.float16 else ("BF16", "F16", "F32")
    for dtype in (name for name in order if name in allowed):
        if dtype == "BF16":
            tensor = FileTensor(dtype, (wide.view(np.uint32) >> 16).astype(np.uint16))
        else:
            with np.errstate(over="ignore"):
                tensor = FileTensor(dtype, wide.astype(NUMPY[dtype]))
        if np.array_equal(tensor.floats().astype(np.float32), wide):
            return tensor
    raise BadInput(f"{what}: {values.dtype} values that none of {', '.join(allowed)} holds exactly")


def check(tensors: Tensors, required: Slots, optional: Slots, what: str) -> None:
    """Compare a layer's tensors with a layout; raise `BadFile` naming the first that is missing, extra or different."""
    for problem in problems(tensors, required, optional):
        raise BadFile(f"{what}: {problem}")


def problems(tensors: Tensors, required: Slots, optional: Slots) -> list[str]:
    """Return what `check` would complain of: everything, in words. `tensors` need only have `shape` and `dtype`."""
    allowed = required | optional
    found = [f"{name} is missing" for name in required if name not in tensors]
    found += [f"{name} is left over: this format has no such tensor" for name in tensors if name not in allowed]
    for name, tensor in tensors.items():
        if name in allowed:
            shape, dtypes = allowed[name]
            if tuple(tensor.shape) != shape or tensor.dtype not in dtypes:
                found.append(
                    f"{name} must be {' or '.join(dtypes)} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}"
                )
    return found
