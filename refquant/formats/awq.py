"""AWQ checkpoints (`quant_method: awq`), 4 bits: the "gemm" layout, written and read, and TinyChat's, read.

gemm, for a Linear layer [n, k] in groups of g::

    tensor    type    shape        meaning
    qweight   I32     [k, n/8]     codes of 8 outputs in each word
    qzeros    I32     [k/g, n/8]   zero-points, in the same order; as they are, nothing subtracted
    scales    F16     [k/g, n]

Weight [o, i] is scales[i // g, o] * (code[i, o] - zero[i // g, o]). Word c holds outputs 8c to 8c + 7, but not in
their order; the kernel takes two halves from a word with one mask, and gets neighbours that way::

    bit      31  28  27  24  23  20  19  16  15  12  11   8  7    4  3    0
    output   [ 7  ]  [ 5  ]  [ 3  ]  [ 1  ]  [ 6  ]  [ 4  ]  [ 2  ]  [ 0  ]

So outputs with codes 0 to 7 pack to 0x75316420. Bits per weight: 4 + 20 / g, so 4.15625 for g = 128.

TinyChat (`version: gemv_fast` of AutoAWQ; llm-awq calls its float zero-points `scaled_zeros`)::

    tensor    type    shape         meaning
    qweight   I16     [n/4, k]      4 outputs by 64 inputs in 64 halfwords, see `_TINYCHAT`
    scales    F16     [G', n]       G' = k/g, rounded up to whole groups of rows; the rest is 0
    qzeros    F16     [G', n]       -zero * scale, rounded to float16

Bits per weight: 4 + 32 / g, so 4.25.

Source: `WQLinear_GEMM.from_linear` and `pack_intweight` of AutoAWQ 0.2.9 (their output is the tests' golden files).
Against other code: TinyChat's kernel adds the rounded -zero * scale to code * scale; here the zero-point is taken back
to the integer it was, which differs from that by at most one rounding to float16.
Leaves out: other widths than 4 bits; `version: gemv` and `marlin`; g_idx, which AWQ does not have.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from refquant.errors import BadFile, BadInput
from refquant.formats import file_tensor
from refquant.formats.bits import pack_words, unpack_words
from refquant.formats.checkpoint_layout import GridLayout, group_size, number, ordinary_groups, scales_tensor
from refquant.formats.file_tensor import Slots, Tensors
from refquant.quantized import Quantized

ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # slot i of a word, from its low end, holds output ORDER[i]
_SCALES = ("F16", "BF16", "F32")


def pack_outputs(codes: np.ndarray) -> np.ndarray:
    """Pack codes [rows, n], 4 bits each, into int32 [rows, n/8] in AWQ's order."""
    rows, n = codes.shape
    return pack_words(codes.reshape(rows, n // 8, 8)[..., ORDER], 4)[..., 0]


def unpack_outputs(words: np.ndarray) -> np.ndarray:
    """Unpack int32 [rows, n/8] into codes, uint8 [rows, n]."""
    codes = np.empty((*words.shape, 8), np.uint8)
    codes[..., ORDER] = unpack_words(words[..., None], 4, 8)
    return codes.reshape(len(words), -1)


@dataclass(frozen=True)
class AWQ(GridLayout):
    """The gemm layout. A symmetric grid is written with its zero-point, 8, like any other."""

    name: ClassVar[str] = "awq"
    marker: ClassVar[str] = "qweight"

    def __post_init__(self):
        if self.bits != 4:
            raise BadInput(f"AWQ files hold 4 bits, not {self.bits}")

    @classmethod
    def from_config(cls, config: dict) -> "AWQ | TinyChat":
        """Return the layout that `quantization_config` (or AutoAWQ's quant_config.json) declares.

        Raises
        ------
        BadFile
            Another width or version.
        """
        version = str(config.get("version") or config.get("format") or "gemm").lower()
        kinds = {"gemm": AWQ, "gemv_fast": TinyChat}
        if version not in kinds:
            raise BadFile(f"awq: version {version!r}; known: {', '.join(kinds)}")
        bits = number(config, ("bits", "w_bit"), "awq", 4)
        if bits != 4:
            raise BadFile(f"awq: bits {bits}; these layouts have 4")
        size = number(config, ("group_size", "q_group_size"), "awq", 128)
        return kinds[version](4, group_size(size), sym=False)

    @classmethod
    def of(cls, grid) -> "AWQ":
        """Return the layout for matrices on `grid`, an `IntGrid`; `BadInput` for a width it cannot hold."""
        return cls(grid.bits, grid.group_size, grid.sym)

    def config(self) -> dict:
        """Return the `quantization_config` of config.json; the writer adds `modules_to_not_convert`."""
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": self.group_size or -1,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": None,
        }

    def groups(self, n: int, k: int) -> int:
        """Groups of a row; `BadInput` when the layer does not fill groups and words."""
        if n % 8 or k % (self.group_size or k):
            raise BadInput(
                f"awq: a layer {[n, k]} (out, in) must have out a multiple of 8 and in a multiple of the group size, "
                f"{self.group_size}; leave it unquantized or take GPTQ"
            )
        return k // (self.group_size or k)

    def slots(self, n: int, k: int) -> tuple[Slots, Slots]:
        """Tensors of a layer [n, k]."""
        groups = self.groups(n, k)
        return {
            "qweight": ((k, n // 8), ("I32",)),
            "qzeros": ((groups, n // 8), ("I32",)),
            "scales": ((groups, n), _SCALES),
        }, {}

    def shape(self, tensors: Tensors) -> tuple[int, int]:
        """Size (n, k) from qweight."""
        words = tensors["qweight"].shape if "qweight" in tensors else ()
        if len(words) != 2 or 0 in words:
            raise BadFile(f"awq: qweight must be [in, out / 8], got {list(words)}")
        return words[1] * 8, words[0]

    def read(self, tensors: Tensors) -> Quantized:
        """Return the layer that these tensors hold; `BadFile` when one is missing, left over or of another shape."""
        shape = self.check(tensors)
        codes, zeros = (unpack_outputs(tensors[name].array).T for name in ("qweight", "qzeros"))  # [n, k] [n, G]
        if self.sym and (zeros != 8).any():
            raise BadFile(f"awq: read as symmetric, but zero-points {zeros.min()}..{zeros.max()} were found, not 8")
        return self.quantized(shape, codes, tensors["scales"].floats().T, zeros)

    def write(self, q: Quantized) -> Tensors:
        """Return the tensors of `q`; `BadInput` for another grid, a size or a map of columns it cannot hold."""
        self.groups(*q.shape)
        fields = self.fields(q)
        if not ordinary_groups(fields, self.grid):
            raise BadInput("awq: the layer maps columns to groups (act-order), and AWQ files have no g_idx; take GPTQ")
        return {
            "qweight": file_tensor.of(pack_outputs(fields["codes"].T)),
            "qzeros": file_tensor.of(pack_outputs(fields["zeros"].T)),
            "scales": scales_tensor(fields["scales"].T, "awq", _SCALES),
        }


def _autoawq_names(tensors: Tensors) -> Tensors:
    return {"qzeros" if name == "scaled_zeros" else name: tensor for name, tensor in tensors.items()}


def _tinychat() -> tuple[np.ndarray, np.ndarray]:
    """Output 0..3 and input 0..63 of nibble j of halfword h, both [64, 4]: one tile of TinyChat's interleave.

    A halfword holds inputs 8 apart in pairs: of every 32 inputs, (0, 1) (8, 9) (16, 17) (24, 25) come first, then
    (2, 3) and so on; each eight of those are split into even and odd places; then four outputs follow each other.
    """
    inputs = np.arange(32).reshape(4, 4, 2).transpose(1, 0, 2).reshape(4, 4, 2).transpose(0, 2, 1).reshape(32)
    inputs = np.concatenate([inputs, inputs + 32])  # [64], of one output
    nibbles = np.arange(4 * 64).reshape(64, 4)  # halfword, nibble -> place in the tile of 4 outputs
    return nibbles // 64, inputs[nibbles % 64]


_TINYCHAT = _tinychat()


@dataclass(frozen=True)
class TinyChat(AWQ):
    """TinyChat's layout, read only."""

    name: ClassVar[str] = "awq gemv_fast"
    zero_domain: ClassVar[str] = "float, -zero * scale"

    def config(self) -> dict:
        """Refuse: this layout is not written."""
        raise BadInput("awq: TinyChat's layout is read, not written; use awq (gemm)")

    def padded_groups(self, groups: int) -> int:
        """Rows of scales in the file: whole eights, more of them for small groups."""
        eights = {64: 2, 32: 4}.get(self.group_size or 128, 1)
        return -(-groups // (8 * eights)) * 8 * eights

    def slots(self, n: int, k: int) -> tuple[Slots, Slots]:
        """Tensors of a layer [n, k]."""
        groups = self.padded_groups(self.groups(n, k))
        if k % 64:
            raise BadInput(f"awq: TinyChat interleaves 64 inputs, {k} do not fill that")
        return {
            "qweight": ((n // 4, k), ("I16",)),
            "scales": ((groups, n), ("F16",)),
            "qzeros": ((groups, n), ("F16",)),
        }, {}

    def shape(self, tensors: Tensors) -> tuple[int, int]:
        """Size (n, k) from qweight."""
        halfwords = tensors["qweight"].shape if "qweight" in tensors else ()
        if len(halfwords) != 2 or 0 in halfwords:
            raise BadFile(f"awq: qweight must be [out / 4, in], got {list(halfwords)}")
        return halfwords[0] * 4, halfwords[1]

    def problems(self, tensors: Tensors, shape=None) -> list[str]:
        """As of any layout; llm-awq's name for the zero-points is taken for AutoAWQ's."""
        return super().problems(_autoawq_names(tensors), shape)

    def read(self, tensors: Tensors) -> Quantized:
        """Return the layer; `BadFile` for zero-points that are not -scale times a code."""
        n, k = self.check(tensors)
        tensors = _autoawq_names(tensors)
        groups = self.groups(n, k)
        scales, scaled = (tensors[name].array[:groups] for name in ("scales", "qzeros"))  # [G, n]
        with np.errstate(all="ignore"):
            zeros = np.clip(np.rint(-scaled.astype(np.float32) / scales), 0, 15)
            exact = scaled == -(scales.astype(np.float32) * zeros).astype(np.float16)
        if not exact.all():
            raise BadFile("awq: zero-points that are not -scale times an integer in 0..15; that is not read")
        nibbles = unpack_words(tensors["qweight"].array.view(np.uint16).astype(np.uint32)[..., None], 4, 8)[..., :4]
        tile = np.empty((n // 4, k // 64, 4, 64), np.uint8)
        tile[:, :, _TINYCHAT[0], _TINYCHAT[1]] = nibbles.reshape(n // 4, k // 64, 64, 4)
        codes = tile.transpose(0, 2, 1, 3).reshape(n, k)
        return self.quantized((n, k), codes, scales.T, zeros.astype(np.uint8).T)

    def write(self, q: Quantized) -> Tensors:
        """Refuse: this layout is not written."""
        self.config()
