"""One weight of one GGUF block: which bits of the block hold it, and the arithmetic from them to its value.

    bit_map(name)                which bits each number of a block is read from
    weight(block, name, i)       weight i: its code, its scale, its minimum, their bits, and the steps to its value
    bit(block, name, at)         the other way round: what a bit belongs to, and the weights that it can change

Nothing here knows a layout. A bit belongs to a number when flipping it changes what `ops.unpack` reads, whatever the
rest of its byte holds; so the map cannot differ from the decoder. Bits are counted as `refquant.formats.bits` does:
bit i of a block is bit i % 8 of byte i // 8, bit 0 the lowest.

Leaves out: F32, F16 and BF16, which have no blocks, and the formats that refquant does not decode.
"""

import functools
from dataclasses import dataclass

import numpy as np

from refquant import ops
from refquant.codebooks import E2M1_DOUBLED, IQ4_VALUES, e8m0_half
from refquant.errors import BadInput, UnknownName
from refquant.ggml_types import ggml_type
from refquant.inspect_file import record_of
from refquant.quantized import Quantized

BLOCK_FORMATS = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4"),
)
CENTRE = {"Q4_0": 8, "Q5_0": 16, "Q3_K": 4, "Q6_K": 32, "TQ1_0": 1, "TQ2_0": 1}  # subtracted from the code
TABLE = {"IQ4_NL": IQ4_VALUES, "IQ4_XS": IQ4_VALUES, "MXFP4": E2M1_DOUBLED}  # the code is an index
NAMES = {"codes": "code", "scales": "sub-scale", "mins": "sub-min", "e": "exponent e"}


@dataclass(frozen=True)
class Part:
    """A number stored in a block: `value` as read, `stored` the integer that its `bits` spell, the highest first.

    `field` and `index` say which number of `ops.unpack` it is. A trit of TQ1_0 has no bits of its own: it is a digit
    of a whole byte in base 3, so `stored` is that byte.
    """

    field: str
    index: int
    value: float
    stored: int
    bits: tuple[int, ...]

    @property
    def label(self) -> str:
        """The number's name: `code 17`, `sub-scale 3`, `d`."""
        name = NAMES.get(self.field, self.field)
        return f"{name} {self.index}" if self.field in ("codes", "scales", "mins") else name

    @property
    def binary(self) -> str:
        """The stored integer in base 2, a digit for each of `bits`."""
        return f"{self.stored:0{len(self.bits)}b}"

    @property
    def bytes(self) -> tuple[int, ...]:
        """The bytes of the block that hold it, in order."""
        return tuple(sorted({at // 8 for at in self.bits}))


@dataclass(frozen=True)
class Weight:
    """Weight `index` of a block: the numbers it is made of, the steps of the arithmetic as text, the float32 value."""

    index: int
    parts: tuple[Part, ...]
    steps: tuple[str, ...]
    value: np.float32


def _check(name: str) -> None:
    if name not in BLOCK_FORMATS:
        raise UnknownName("block format", name, BLOCK_FORMATS)


def _unpack(blocks: np.ndarray, name: str) -> dict[str, np.ndarray]:
    """Each number of blocks [n, bytes] as unsigned integers [n, count], before any sign or float is read into it."""
    fields = ops.unpack(Quantized(name, (len(blocks), ggml_type(name).weights), {"blocks": blocks}))
    flat = {field: np.ascontiguousarray(values).reshape(len(blocks), -1) for field, values in fields.items()}
    return {field: values.view(f"u{values.itemsize}") for field, values in flat.items()}


@functools.cache
def bit_map(name: str) -> dict[str, np.ndarray]:
    """For every field of `ops.unpack`, bool [count, bits of the block]: is this number read from this bit?

    Raises
    ------
    UnknownName
        Not one of `BLOCK_FORMATS`.
    """
    _check(name)
    size, every = ggml_type(name).bytes, np.arange(256)
    trials = np.zeros((size, 256, size), np.uint8)  # every byte takes every value, the others are 0
    trials[np.arange(size)[:, None], every, np.arange(size)[:, None]] = every
    found = {}
    for field, values in _unpack(trials.reshape(-1, size), name).items():
        read = values.reshape(size, 256, -1)
        flips = []  # 8 x [bytes, count]
        for at in range(8):
            pairs = read.reshape(size, 128 >> at, 2, 1 << at, -1)  # the axis of 2 is bit `at` of the byte
            flips.append((pairs[:, :, 0] != pairs[:, :, 1]).any(axis=(1, 2)))
        found[field] = np.stack(flips, axis=1).reshape(8 * size, -1).T.copy()
        found[field].flags.writeable = False
    return found


@functools.cache
def _significance(name: str) -> dict[str, np.ndarray]:
    """What each bit of the block adds to each number, int [count, bits of the block], for the numbers made of bits."""
    size = ggml_type(name).bytes
    single = np.packbits(np.eye(8 * size, dtype=np.uint8), axis=1, bitorder="little")
    alone, nothing = _unpack(single, name), _unpack(np.zeros((1, size), np.uint8), name)
    return {field: (values - nothing[field]).T.astype(np.int64) for field, values in alone.items()}


def _part(block: np.ndarray, name: str, field: str, index: int, value) -> Part:
    """Gather the bits of one number, the most significant first."""
    bits = np.flatnonzero(bit_map(name)[field][index])
    if (name, field) == ("TQ1_0", "codes"):
        bits = bits[::-1]
    else:
        bits = bits[np.argsort(-_significance(name)[field][index, bits], kind="stable")]
    spelled = "".join(str(block[at // 8] >> at % 8 & 1) for at in bits)
    return Part(field, index, float(value), int(spelled, 2), tuple(int(at) for at in bits))


def weight(block: np.ndarray, name: str, i: int) -> Weight:
    """Explain weight `i` of a block, uint8 [bytes of a block] as in the file.

    Raises
    ------
    UnknownName
        Not one of `BLOCK_FORMATS`.
    BadInput
        A block of another size, or no such weight.
    """
    _check(name)
    kind = ggml_type(name)
    block = np.asarray(block)
    if block.dtype != np.uint8 or block.shape != (kind.bytes,):
        raise BadInput(f"a block of {name} is uint8 [{kind.bytes}], got {block.dtype} {list(block.shape)}")
    if not 0 <= i < kind.weights:
        raise BadInput(f"a block of {name} has weights 0 to {kind.weights - 1}, not {i}")
    fields = ops.unpack(Quantized.from_bytes(block, name, (1, kind.weights)))
    parts = {}
    for field, values in fields.items():
        values = values.reshape(-1)
        index = i * len(values) // kind.weights
        parts[field] = _part(block, name, field, index, values[index])
    with np.errstate(all="ignore"):
        steps, value = _arithmetic(name, {field: part.value for field, part in parts.items()}, parts)
    return Weight(i, tuple(parts[field] for field in ("codes", *(f for f in parts if f != "codes"))), steps, value)


def _arithmetic(name: str, n: dict[str, float], parts: dict[str, Part]) -> tuple[tuple[str, ...], np.float32]:
    """The decoder's steps for one weight, each rounded to float32, in words and as numbers."""
    f32, steps = np.float32, []
    code = level = f32(n["codes"])
    if name in CENTRE:
        level = code - f32(CENTRE[name])
        steps.append(f"level = code − {CENTRE[name]} = {code:g} − {CENTRE[name]} = {level:g}")
    elif name in TABLE:
        level = f32(TABLE[name][int(code)])
        steps.append(f"level = table[code] = table[{code:g}] = {level:g}")
    scale, word = f32(n.get("d", 0)), "d"
    if "e" in n:
        scale, word = e8m0_half(np.uint8([n["e"]]))[0], "scale"
        steps.append(f"scale = 2^(e − 127) / 2 = {scale:.6g}, because the table holds the levels doubled")
    if "scales" in n:
        inner = f32(n["scales"])
        scale, word = scale * inner, "scale"
        steps.append(f"scale = d × {parts['scales'].label} = {n['d']:.6g} × {inner:g} = {scale:.6g}")
    what = "level" if name in CENTRE or name in TABLE else "code"
    value = scale * level
    line = f"weight = {word} × {what}"
    numbers = f"{scale:.6g} × {level:g}"
    if "mins" in n:
        low = f32(n["dmin"]) * f32(n["mins"])
        steps.append(f"min = dmin × {parts['mins'].label} = {n['dmin']:.6g} × {n['mins']:g} = {low:.6g}")
        value, line, numbers = value - low, f"{line} − min", f"{numbers} − {low:.6g}"
    if "m" in n:
        value, line, numbers = value + f32(n["m"]), f"{line} + m", f"{numbers} + {n['m']:.6g}"
    steps.append(f"{line} = {numbers} = {value:.6g}")
    return tuple(steps), f32(value)


@dataclass(frozen=True)
class Bit:
    """One bit of a block: the numbers it is part of, by their labels, and the weights that it can change."""

    at: int
    value: int
    owners: tuple[str, ...]
    weights: tuple[int, ...]


def bit(block: np.ndarray, name: str, at: int) -> Bit:
    """Explain bit `at` of a block: bit at % 8 of byte at // 8. Raises `UnknownName`, `BadInput`."""
    _check(name)
    count = ggml_type(name).weights
    if not 0 <= at < 8 * ggml_type(name).bytes:
        raise BadInput(f"a block of {name} has bits 0 to {8 * ggml_type(name).bytes - 1}, not {at}")
    owners, changed = [], np.zeros(count, bool)
    for field, reads in bit_map(name).items():
        for index in np.flatnonzero(reads[:, at]):
            owners.append(Part(field, int(index), 0.0, 0, ()).label)
            span = count // len(reads)
            changed[index * span : (index + 1) * span] = True
    return Bit(at, int(block[at // 8] >> at % 8 & 1), tuple(owners), tuple(np.flatnonzero(changed).tolist()))


def layout(name: str) -> list[tuple[str, int, int]]:
    """The block's fields as they lie in the file: name, first byte, bytes."""
    record = record_of(name)
    return [(field, record.fields[field][1], record.fields[field][0].itemsize) for field in record.names]
