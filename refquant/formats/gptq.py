"""GPTQ checkpoints (`quant_method: gptq`): the layout that GPTQModel, AutoGPTQ, vLLM and transformers exchange.

A Linear layer [n, k] in groups of g, G = ceil(k / g) groups, b = 2, 3, 4 or 8 bits::

    tensor    type    shape           meaning
    qweight   I32     [k*b/32, n]     codes, a dense stream down each column (along k)
    qzeros    I32     [G, n*b/32]     zero-points, a dense stream along each row (along n)
    scales    F16     [G, n]          some writers: BF16 or F32
    g_idx     I32     [k]             group of each input; k // g unless desc_act

Weight [o, i] is scales[g, o] * (code[i, o] - zero[g, o]) with g = g_idx[i]. The stream is that of `bits`, least
significant bit first, in 32-bit words. One word of 4-bit codes of output o, inputs 0 to 7, and the triple of words that
32 codes of 3 bits fill::

    bit     31  28  27  24  23  20  19  16  15  12  11   8  7    4  3    0
    4 bits  [ 7  ]  [ 6  ]  [ 5  ]  [ 4  ]  [ 3  ]  [ 2  ]  [ 1  ]  [ 0  ]

    3 bits  word 0: codes 0..9 in bits 0..29, then the low 2 bits of code 10
            word 1: the high bit of code 10, codes 11..20 in bits 1..30, then the low bit of code 21
            word 2: the high 2 bits of code 21, then codes 22..31 in bits 2..31

Version 1 (`checkpoint_format: gptq`) stores every zero-point less one, version 2 (`gptq_v2`) as it is: a symmetric
4-bit file has words 0x77777777 in version 1 and 0x88888888 in version 2. A zero-point of 0 has no agreed place in
version 1. GPTQModel, the writer and reader that lives, subtracts one from each *word's* fields together for 2, 4 and 8
bits, so that a 0 borrows from its neighbour, and field by field, modulo 8, for 3 bits; so does this module. Other
readers add one field by field, with or without the modulus, and get that zero-point or its neighbour wrong. Version 2
has no such case.

Bits per weight: b + (16 + b) / g, and 32 / n for g_idx.
Source: `pack_block` and `convert_gptq_v1_to_v2_format_module` of GPTQModel 7.6 (its packer made the tests' golden
files).
Against other code: GPTQModel takes a negative g_idx from the end; here it is an error. Where `desc_act` is false some
engines use g_idx and others ignore it, so a map that is not k // g is an error then.
Leaves out: planar packing (`gptq_p`: 5, 6 and 7 bits), other word sizes than 32, `dynamic` overrides by module.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from refquant.errors import BadFile, BadInput
from refquant.formats import file_tensor
from refquant.formats.bits import pack_words, unpack_words
from refquant.formats.checkpoint_layout import (
    GridLayout,
    check_groups,
    group_size,
    number,
    ordinary_groups,
    scales_tensor,
)
from refquant.formats.file_tensor import FLOATS, Slots, Tensors
from refquant.quantized import Quantized

BITS = (2, 3, 4, 8)
VERSIONS = {"gptq": 1, "gptq_v2": 2}


def store_zeros(zeros: np.ndarray, bits: int, version: int) -> np.ndarray:
    """Pack zero-points [G, n] into qzeros, int32 [G, n*b/32], as `version` has them."""
    if version == 2:
        return pack_words(zeros, bits)
    if bits == 3:  # fields straddle words, so GPTQModel shifts each by itself
        return pack_words((zeros.astype(np.int16) - 1) & 7, bits)
    return _shift_words(pack_words(zeros, bits), bits, -1)


def load_zeros(qzeros: np.ndarray, bits: int, version: int, n: int) -> np.ndarray:
    """Unpack qzeros, int32 [G, n*b/32], into zero-points, uint8 [G, n]."""
    if version == 2:
        return unpack_words(qzeros, bits, n)
    if bits == 3:
        return (unpack_words(qzeros, bits, n) + 1) & 7
    return unpack_words(_shift_words(qzeros, bits, 1), bits, n)


def _shift_words(words: np.ndarray, bits: int, by: int) -> np.ndarray:
    """Add `by` to every field of every word, with carries between the fields of a word."""
    ones = pack_words(np.ones(32 // bits, np.uint8), bits).view(np.uint32)  # [1]: 0x11111111 for 4 bits
    return (words.view(np.uint32) + ones * np.uint32(by % 2**32)).view(np.int32)


@dataclass(frozen=True)
class GPTQ(GridLayout):
    """The layout of one GPTQ checkpoint.

    Parameters
    ----------
    bits, group_size, sym
        The grid; group_size None is the whole row (-1 in the file).
    desc_act : bool
        Whether g_idx may be something else than k // g.
    version : int
        1 or 2, see the module.
    ignore_zeros : bool
        Do not look at the qzeros of a symmetric file, as the fast kernels do. By default they must be the middle code:
        anything else would be decoded differently by different engines.
    """

    desc_act: bool = False
    version: int = 1
    ignore_zeros: bool = False

    name: ClassVar[str] = "gptq"
    marker: ClassVar[str] = "qweight"

    def __post_init__(self):
        if self.bits not in BITS:
            raise BadInput(f"GPTQ files hold 2, 3, 4 or 8 bits, not {self.bits}")
        if self.version not in (1, 2):
            raise BadInput(f"GPTQ files have version 1 or 2, not {self.version!r}")

    @classmethod
    def from_config(cls, config: dict) -> "GPTQ":
        """Return the layout that `quantization_config` (or quantize_config.json) declares.

        Raises
        ------
        BadFile
            Bits, a checkpoint format or an option that this module does not read.
        """
        fmt = config.get("checkpoint_format") or config.get("format") or "gptq"
        if fmt not in VERSIONS:
            raise BadFile(f"gptq: checkpoint_format {fmt!r}; known: {', '.join(VERSIONS)}")
        if config.get("dynamic"):
            raise BadFile("gptq: `dynamic` gives some layers other settings; that is not read")
        if config.get("pack_dtype") not in (None, "int32"):
            raise BadFile(f"gptq: pack_dtype {config['pack_dtype']!r}; only int32 is read")
        bits = number(config, ("bits",), "gptq")
        if bits not in BITS:
            raise BadFile(f"gptq: bits {bits}; known: {', '.join(map(str, BITS))}")
        return cls(
            bits,
            group_size(number(config, ("group_size",), "gptq", -1)),
            number(config, ("sym",), "gptq", True, (bool,)),
            number(config, ("desc_act",), "gptq", False, (bool,)),
            VERSIONS[fmt],
        )

    @classmethod
    def of(cls, grid, desc_act: bool = False, version: int = 1) -> "GPTQ":
        """Return the layout for matrices on `grid`, an `IntGrid`; `BadInput` for bits it cannot hold."""
        return cls(grid.bits, grid.group_size, grid.sym, desc_act, version)

    def config(self) -> dict:
        """Return the `quantization_config` of config.json; quantize_config.json has the same keys."""
        fmt = {version: name for name, version in VERSIONS.items()}[self.version]
        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group_size or -1,
            "desc_act": self.desc_act,
            "sym": self.sym,
            "lm_head": False,
            "pack_dtype": "int32",
            "checkpoint_format": fmt,
            "format": fmt,
        }

    def slots(self, n: int, k: int) -> tuple[Slots, Slots]:
        """Tensors of a layer [n, k]; `BadInput` unless its codes and zero-points fill whole words."""
        for axis, size in (("in", k), ("out", n)):
            if size * self.bits % 32:
                raise BadInput(
                    f"gptq: {size} {axis}_features of {self.bits} bits do not fill 32-bit words; leave this layer "
                    "unquantized or take another format"
                )
        groups = len(self.grid.starts(k))
        required = {
            "qweight": ((k * self.bits // 32, n), ("I32",)),
            "qzeros": ((groups, n * self.bits // 32), ("I32",)),
            "scales": ((groups, n), FLOATS),
        }
        g_idx = {"g_idx": ((k,), ("I32",))}
        return (required | g_idx, {}) if self.desc_act else (required, g_idx)

    def shape(self, tensors: Tensors) -> tuple[int, int]:
        """Size (n, k): n from the columns of qweight, k from its words."""
        words = tensors["qweight"].shape if "qweight" in tensors else ()
        if len(words) != 2 or words[0] * 32 % self.bits or 0 in words:
            raise BadFile(f"gptq: qweight must be [in * {self.bits} / 32, out], got {list(words)}")
        return words[1], words[0] * 32 // self.bits

    def read(self, tensors: Tensors) -> Quantized:
        """Return the layer that these tensors hold.

        Raises
        ------
        BadFile
            A tensor missing, left over, of another shape or type; a group that does not exist; zero-points of a
            symmetric file that are not the middle code (the message says which version they would fit).
        """
        n, k = self.check(tensors)
        scales = tensors["scales"].floats()  # [G, n]
        g_idx = None
        if "g_idx" in tensors:
            g_idx = check_groups(tensors["g_idx"].array, len(scales), "gptq")
            if not self.desc_act and not np.array_equal(g_idx, self.grid.group_index(k)):
                raise BadFile("gptq: desc_act is false, but g_idx is not column // group_size; engines differ on it")
        zeros = self.zeros(tensors["qzeros"].array, n)  # [G, n]
        codes = unpack_words(tensors["qweight"].array.T, self.bits, k)  # [n, k]
        return self.quantized((n, k), codes, scales.T, zeros.T, g_idx)

    def zeros(self, qzeros: np.ndarray, n: int) -> np.ndarray:
        """Zero-points, uint8 [G, n]; those of a symmetric file are checked, see `read`."""
        zeros = load_zeros(qzeros, self.bits, self.version, n)
        middle = 1 << self.bits - 1
        if self.sym and not self.ignore_zeros and (zeros != middle).any():
            other = 3 - self.version
            fits = (load_zeros(qzeros, self.bits, other, n) == middle).all()
            names = {version: name for name, version in VERSIONS.items()}
            reason = f"they fit {names[other]!r}: correct the config" if fits else "it is damaged, or not symmetric"
            raise BadFile(
                f"gptq: sym is true and checkpoint_format {names[self.version]!r}, so every zero-point must be "
                f"{middle}, but {zeros.min()}..{zeros.max()} were found; {reason}"
            )
        return zeros

    def write(self, q: Quantized) -> Tensors:
        """Return the tensors of `q`, which is on this layout's grid.

        Raises
        ------
        BadInput
            Another grid; a size that does not fill words; a column map where desc_act is false; float32 scales that
            no type of the file holds.
        """
        required, _ = self.slots(*q.shape)
        fields = self.fields(q)
        if not self.desc_act and not ordinary_groups(fields, self.grid):
            raise BadInput("gptq: the layer maps columns to groups (act-order), so desc_act must be true")
        qweight = np.ascontiguousarray(pack_words(fields["codes"], self.bits).T)  # [k*b/32, n]
        tensors = {
            "qweight": file_tensor.of(qweight),
            "qzeros": file_tensor.of(store_zeros(fields["zeros"].T, self.bits, self.version)),
            "scales": scales_tensor(fields["scales"].T, "gptq"),
            "g_idx": file_tensor.of(fields["g_idx"]),
        }
        file_tensor.check(tensors, required, {"g_idx": ((q.shape[1],), ("I32",))}, "gptq")
        return tensors
