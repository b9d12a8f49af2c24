"""Quantized: what every method returns, a matrix as the arrays that a file holds.

A storage format is described once, by a :class:`Format`, which says which arrays it has and of which shape and dtype.
`Quantized` checks its arrays against that description when it is made, so a wrong layout fails where it is born.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from refquant.errors import BadInput, UnknownName

Layout = dict[str, tuple[tuple[int, ...], tuple[str, ...]]]  # array name -> (shape, the dtypes it may have)


@dataclass(frozen=True)
class Format:
    """A storage format: its name, the family whose code handles it, and the arrays of a matrix [out, in] in it.

    `layout(out, in)` lists the arrays that must be there, `optional(out, in)` those that may be; it raises `BadInput`
    for a width that the format cannot hold. `stream` marks a format that is one stream of bytes (the GGUF block
    formats), whose single array is `blocks`, uint8 [out, bytes per row].
    """

    name: str
    family: str
    layout: Callable[[int, int], Layout]
    optional: Callable[[int, int], Layout] = field(default=lambda n, k: {})
    stream: bool = False

    def nbytes(self, shape: tuple[int, int]) -> int:
        """Bytes that a matrix of this shape takes, without making one."""
        return sum(math.prod(dims) * np.dtype(dtypes[0]).itemsize for dims, dtypes in self.layout(*shape).values())

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Bits per weight of a matrix of this shape, scales and zero-points included."""
        return 8 * self.nbytes(shape) / math.prod(shape)


_NAMED: dict[str, Format] = {}
_FAMILIES: list[tuple[re.Pattern, Callable[[str], Format], tuple[str, ...]]] = []


def register_format(item: Format) -> Format:
    """Add a format that has one name."""
    _NAMED[item.name] = item
    return item


def register_family(pattern: str, make: Callable[[str], Format], examples: tuple[str, ...]) -> None:
    """Add formats whose names match `pattern`; `make(name)` describes one, `examples` are listed by `formats()`."""
    _FAMILIES.append((re.compile(pattern), make, examples))


def formats() -> list[str]:
    """Every storage format by name; families with a free group size by their usual members."""
    return [*_NAMED, *(name for _, _, examples in _FAMILIES for name in examples)]


def find_format(name: str) -> Format:
    """Return the format called `name`; raise `UnknownName`, which lists the known ones."""
    if isinstance(name, str):
        if name in _NAMED:
            return _NAMED[name]
        for pattern, make, _ in _FAMILIES:
            if pattern.fullmatch(name):
                return make(name)
    raise UnknownName("format", name, formats())


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantized matrix [out, in]: format name, shape, and the arrays as a file holds them."""

    format: str
    shape: tuple[int, int]
    arrays: dict[str, np.ndarray]

    def __post_init__(self):
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise BadInput(
                f"{self.format}: expected the shape (out, in) of a matrix with no empty axis, got {self.shape}"
            )
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        description = find_format(self.format)
        required = description.layout(*self.shape)
        allowed = required | description.optional(*self.shape)
        if missing := required.keys() - self.arrays.keys():
            raise BadInput(f"{self.format}: arrays missing: {sorted(missing)}; expected {sorted(required)}")
        if extra := self.arrays.keys() - allowed.keys():
            raise BadInput(f"{self.format}: arrays it does not have: {sorted(extra)}; expected {sorted(allowed)}")
        for name, array in self.arrays.items():
            dims, dtypes = allowed[name]
            if array.shape != dims or array.dtype.name not in dtypes:
                raise BadInput(
                    f"{self.format}: {name} must be {' or '.join(dtypes)} {list(dims)} for a matrix {self.shape}, "
                    f"got {array.dtype.name} {list(array.shape)}"
                )

    @classmethod
    def from_bytes(cls, blocks, format: str, shape: tuple[int, int]) -> "Quantized":  # noqa: A002 (a public name)
        """Wrap the bytes of a block format as they lie in a file: bytes, or a uint8 array of any shape."""
        description = find_format(format)
        if not description.stream:
            raise BadInput(f"{format} is not one stream of bytes; give its arrays to Quantized(...)")
        data = np.frombuffer(blocks, np.uint8) if isinstance(blocks, bytes | bytearray | memoryview) else blocks
        ((dims, _),) = description.layout(*shape).values()
        if data.dtype != np.uint8 or data.size != math.prod(dims):
            raise BadInput(
                f"{format} {tuple(shape)}: expected {math.prod(dims)} bytes, got {data.size} of {data.dtype}"
            )
        return cls(format, tuple(shape), {"blocks": data.reshape(dims)})

    def to_bytes(self) -> bytes:
        """Return the bytes of a block format as a file holds them."""
        if not find_format(self.format).stream:
            raise BadInput(f"{self.format} is not one stream of bytes; it has {sorted(self.arrays)}")
        return self.arrays["blocks"].tobytes()

    @property
    def nbytes(self) -> int:
        """Bytes of all the arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight, scales and zero-points included."""
        return 8 * self.nbytes / math.prod(self.shape)

    def __repr__(self):
        return f"Quantized({self.format}, {list(self.shape)}, {self.bits_per_weight:.4f} bits per weight)"
