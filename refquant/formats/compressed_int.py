"""compressed-tensors `pack-quantized`: integer codes of 1 to 8 bits, as llm-compressor writes them.

A Linear layer [n, k] in G groups of g (strategy "group", which must divide k, or "channel", one group a row)::

    tensor              type       shape                  meaning
    weight_packed       I32        [n, ceil(k*b/32)]      codes, a dense stream along k, see `bits`
    weight_scale        F16 BF16   [n, G]                 in the model's own type; F32 too
    weight_shape        I64        [2]                    n, k
    weight_zero_point   I32        [ceil(n*b/32), G]      a dense stream along n; asymmetric files only
    weight_g_idx        I32        [k]                    only where actorder is "group"

The library's codes are signed, q in -2^(b-1) .. 2^(b-1) - 1, and are stored with 2^(b-1) added, zero-points alike. The
stored ones are refquant's unsigned codes and zero-points. One word of 4-bit codes -8 to -1 is 0x76543210::

    bit     31  28  27  24  23  20  19  16  15  12  11   8  7    4  3    0
    input   [ 7  ]  [ 6  ]  [ 5  ]  [ 4  ]  [ 3  ]  [ 2  ]  [ 1  ]  [ 0  ]

Weight [o, i] is weight_scale[o, g] * (code[o, i] - zero[g, o]). Bits per weight: b + 16 / g, or b + (16 + b) / g.

Source: `pack_to_int32` and `PackedQuantizationCompressor` of compressed-tensors 0.20 (their output is the tests'
golden file).
Against other code: the library pads a stream to whole words with zeros, as here. Version 0.20 refuses actorder "group"
and has no weight_g_idx any more; earlier files have it.
Leaves out: strategy "tensor" and "block" for integers, and `int-quantized` (int8 activations).
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


def _words(count: int, bits: int) -> int:
    """Words of a dense stream."""
    return -(-count * bits // 32)


@dataclass(frozen=True)
class PackQuantized(GridLayout):
    """The layout of one group of layers. `actorder`: columns are mapped to groups by weight_g_idx."""

    actorder: bool = False

    name: ClassVar[str] = "pack-quantized"
    marker: ClassVar[str] = "weight_packed"

    @classmethod
    def from_group(cls, group: dict) -> "PackQuantized":
        """Return the layout of one of the `config_groups`; `BadFile` for what is not read."""
        weights = group["weights"]
        bits = number(weights, ("num_bits",), cls.name)
        strategy = weights.get("strategy") or "group"
        if weights.get("type", "int") != "int" or not 1 <= bits <= 8 or strategy not in ("group", "channel"):
            raise BadFile(
                f"{cls.name}: {bits}-bit {weights.get('type', 'int')} by {strategy}; integers of 1 to 8 bits by group "
                "or channel are read"
            )
        size = None if strategy == "channel" else group_size(number(weights, ("group_size",), cls.name))
        actorder = str(weights.get("actorder")).lower() in ("group", "dynamic", "true")
        return cls(bits, size, number(weights, ("symmetric",), cls.name, True, (bool,)), actorder)

    @classmethod
    def of(cls, grid, actorder: bool = False) -> "PackQuantized":
        """Return the layout for matrices on `grid`, an `IntGrid`."""
        return cls(grid.bits, grid.group_size, grid.sym, actorder)

    def group(self) -> dict:
        """Return the entry of `config_groups`, without its targets."""
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": self.sym,
            "strategy": "group" if self.group_size else "channel",
            "group_size": self.group_size,
            "dynamic": False,
        }
        if self.actorder:
            weights["actorder"] = "group"
        return {"weights": weights, "input_activations": None, "output_activations": None}

    def slots(self, n: int, k: int) -> tuple[Slots, Slots]:
        """Tensors of a layer [n, k]; `BadInput` unless the groups divide k."""
        if k % (self.group_size or k):
            raise BadInput(
                f"{self.name}: groups of {self.group_size} do not divide {k} in_features; leave this layer unquantized "
                "or take GPTQ, whose last group may be short"
            )
        groups = k // (self.group_size or k)
        slots = {
            "weight_packed": ((n, _words(k, self.bits)), ("I32",)),
            "weight_scale": ((n, groups), FLOATS),
            "weight_shape": ((2,), ("I64", "I32")),
        }
        if not self.sym:
            slots["weight_zero_point"] = ((_words(n, self.bits), groups), ("I32",))
        if self.actorder:
            slots["weight_g_idx"] = ((k,), ("I32",))
        return slots, {}

    def shape(self, tensors: Tensors) -> tuple[int, int]:
        """Size (n, k): what weight_shape says, if weight_packed has room for just that."""
        packed, stated = tensors.get("weight_packed"), tensors.get("weight_shape")
        if packed is None or stated is None or len(packed.shape) != 2 or tuple(stated.shape) != (2,):
            raise BadFile(f"{self.name}: weight_packed [out, words] and weight_shape [2] must be there")
        n, k = (int(size) for size in stated.array)
        if n < 1 or k < 1 or tuple(packed.shape) != (n, _words(k, self.bits)):
            raise BadFile(
                f"{self.name}: weight_shape says {[n, k]}, which takes weight_packed {[n, _words(k, self.bits)]} "
                f"for {self.bits} bits, got {list(packed.shape)}"
            )
        return n, k

    def read(self, tensors: Tensors) -> Quantized:
        """Return the layer; `BadFile` when a tensor is missing, left over, of another shape, or a group not there."""
        n, k = self.check(tensors)
        scales = tensors["weight_scale"].floats()  # [n, G]
        zeros = g_idx = None
        if not self.sym:
            zeros = unpack_words(tensors["weight_zero_point"].array.T, self.bits, n).T  # [n, G]
        if self.actorder:
            g_idx = check_groups(tensors["weight_g_idx"].array, scales.shape[1], self.name)
        return self.quantized((n, k), unpack_words(tensors["weight_packed"].array, self.bits, k), scales, zeros, g_idx)

    def write(self, q: Quantized) -> Tensors:
        """Return the tensors of `q`; `BadInput` for another grid, size, or a map of columns where actorder is off."""
        self.slots(*q.shape)
        fields = self.fields(q)
        tensors = {
            "weight_packed": file_tensor.of(pack_words(fields["codes"], self.bits)),
            "weight_scale": scales_tensor(fields["scales"], self.name),
            "weight_shape": file_tensor.of(np.array(q.shape, np.int64)),
        }
        if not self.sym:
            tensors["weight_zero_point"] = file_tensor.of(pack_words(fields["zeros"].T, self.bits).T)
        if self.actorder:
            tensors["weight_g_idx"] = file_tensor.of(fields["g_idx"])
        elif not ordinary_groups(fields, self.grid):
            raise BadInput(
                f"{self.name}: the layer maps columns to groups (act-order); current compressed-tensors has no "
                "weight_g_idx; take GPTQ"
            )
        return tensors
