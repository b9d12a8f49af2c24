"""compressed-tensors' float formats: `float-quantized` (FP8), `nvfp4-pack-quantized` and `mxfp4-pack-quantized`.

A Linear layer [n, k] in each of them::

    tensor                type            shape                    meaning
    weight                F8_E4M3         [n, k]                   codes                                   FP8
    weight_scale          F32 BF16 F16    [n, 1]                   strategy "channel", multiplies          FP8
                                          [1]                      strategy "tensor"
                                          [n / 128, k / 128]       strategy "block", rounded up
    weight_packed         U8              [n, k / 2]               E2M1 codes, first in the low half       NVFP4 MXFP4
    weight_scale          F8_E4M3         [n, k / 16]              multiplies                              NVFP4
    weight_global_scale   F32             [1]                      divides                                 NVFP4
    weight_scale          U8              [n, k / 32]              E8M0, 2^(byte - 127)                    MXFP4
    input_scale, input_global_scale                                of activations; not used here

What the bits mean, and the bits per weight, is told in `fp8` and `mx`: refquant keeps these tensors as they are.

Source: `FloatQuantizationCompressor`, `NVFP4PackedCompressor` and `MXFP4PackedCompressor` of compressed-tensors 0.20.
Against other code: the activations that these files ask to have quantized at run time are left in float by refquant's
own layers, so results differ from an engine's by that.
Leaves out: MXFP6 and MXFP8, asymmetric floats, other blocks than 128 by 128.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from refquant.errors import BadFile, BadInput
from refquant.formats import file_tensor
from refquant.formats.checkpoint_layout import Layout
from refquant.formats.file_tensor import FLOATS, FileTensor, Slots, Tensors
from refquant.quantized import Quantized

_SCALARS: Slots = {"input_scale": ((1,), FLOATS), "input_global_scale": ((1,), FLOATS)}
_FP8 = {"channel": "fp8-e4m3", "tensor": "fp8-e4m3-tensor", "block": "fp8-e4m3-block"}
_FP8_INPUTS = {
    "channel": {"strategy": "token"},
    "tensor": {"strategy": "token"},
    "block": {"strategy": "group", "group_size": 128},
}


@dataclass(frozen=True)
class FloatQuantized(Layout):
    """FP8. `strategy` says what shares a scale: "channel" (a row), "tensor" or "block" (128 by 128)."""

    strategy: str = "channel"

    name: ClassVar[str] = "float-quantized"
    marker: ClassVar[str] = "weight_scale"
    zero_domain: ClassVar[str] = "none"

    @property
    def format(self) -> str:
        """The storage format of its layers."""
        return _FP8[self.strategy]

    @classmethod
    def from_group(cls, group: dict) -> "FloatQuantized":
        """Return the layout of one of the `config_groups`; `BadFile` for what is not read."""
        weights = group["weights"]
        strategy, block = weights.get("strategy"), weights.get("block_structure")
        if weights.get("type") != "float" or weights.get("num_bits") != 8 or strategy not in _FP8:
            raise BadFile(
                f"{cls.name}: {weights.get('num_bits')}-bit {weights.get('type')} by {strategy}; 8-bit float by "
                f"{', '.join(_FP8)} is read"
            )
        if weights.get("symmetric", True) is not True or (strategy == "block" and block not in ([128, 128], "128x128")):
            raise BadFile(f"{cls.name}: only symmetric weights, and blocks of [128, 128], are read; got {weights}")
        return cls(strategy)

    @classmethod
    def of(cls, fmt: str) -> "FloatQuantized":
        """Return the layout for matrices in the storage format `fmt`; `BadInput` when it holds no such."""
        strategy = {name: strategy for strategy, name in _FP8.items()}.get(fmt)
        if strategy is None:
            raise BadInput(f"{cls.name} holds {', '.join(_FP8.values())}, not {fmt}")
        return cls(strategy)

    def group(self) -> dict:
        """Return the entry of `config_groups`, without its targets."""
        weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": self.strategy, "dynamic": False}
        if self.strategy == "block":
            weights["block_structure"] = [128, 128]
        inputs = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": True, **_FP8_INPUTS[self.strategy]}
        return {"weights": weights, "input_activations": inputs, "output_activations": None}

    def slots(self, n: int, k: int) -> tuple[Slots, Slots]:
        """Tensors of a layer [n, k]."""
        scales = {"channel": (n, 1), "tensor": (1,), "block": (-(-n // 128), -(-k // 128))}[self.strategy]
        return {"weight": ((n, k), ("F8_E4M3",)), "weight_scale": (scales, FLOATS)}, _SCALARS

    def shape(self, tensors: Tensors) -> tuple[int, int]:
        """Size (n, k): that of `weight`."""
        return self.weight_shape(tensors)

    def read(self, tensors: Tensors) -> Quantized:
        """Return the layer; `BadFile` when a tensor is missing, left over, of another shape or type."""
        shape = self.check(tensors)
        return _fp8(self, shape, tensors["weight"], tensors["weight_scale"])

    def write(self, q: Quantized) -> Tensors:
        """Return the tensors of `q`; `BadInput` for another format."""
        arrays = self.of_format(q, self.format)
        scales = arrays.get("weight_scale", arrays.get("weight_scale_inv"))
        return {"weight": FileTensor("F8_E4M3", arrays["weight"]), "weight_scale": file_tensor.of(scales)}


def _fp8(layout, shape, weight: FileTensor, scales: FileTensor) -> Quantized:
    """Wrap codes and scales, whatever the latter's type in the file; NaN and infinity in them are refused."""
    values = scales.floats().astype(np.float32)
    if not np.isfinite(values).all():
        raise BadFile(f"{layout.name}: scales hold NaN or infinity")
    name = "weight_scale_inv" if layout.format.endswith("block") else "weight_scale"
    return Quantized(layout.format, shape, {"weight": weight.array, name: values})


@dataclass(frozen=True)
class FineGrainedFP8(Layout):
    """`quant_method: fp8`, DeepSeek's: weight F8_E4M3 [n, k] and weight_scale_inv F32 [n / 128, k / 128], rounded up.

    Despite its name weight_scale_inv multiplies: weight = code * weight_scale_inv of its 128 by 128 block. Blocks at
    the right and lower edge may be smaller. Bits per weight: 8 + 32 / 128^2.

    Source: DeepSeek-V3's `weight_dequant` (inference/kernel.py); transformers' `finegrained_fp8`.
    Leaves out: other block sizes, per-tensor scales, `scale_fmt: ue8m0` (scales rounded to powers of two are read as
    the float32 numbers they are).
    """

    name: ClassVar[str] = "fp8"
    marker: ClassVar[str] = "weight_scale_inv"
    zero_domain: ClassVar[str] = "none"
    format: ClassVar[str] = "fp8-e4m3-block"

    @classmethod
    def from_config(cls, config: dict) -> "FineGrainedFP8":
        """Return the layout; `BadFile` for other blocks or another float."""
        if list(config.get("weight_block_size") or ()) != [128, 128] or config.get("fmt", "e4m3") != "e4m3":
            raise BadFile(
                f"fp8: weight_block_size {config.get('weight_block_size')} of {config.get('fmt', 'e4m3')}; [128, 128] "
                "of e4m3 is read"
            )
        return cls()

    @classmethod
    def of(cls, fmt: str) -> "FineGrainedFP8":
        """Return the layout for matrices in the storage format `fmt`."""
        if fmt != cls.format:
            raise BadInput(f"fp8 checkpoints hold {cls.format}, not {fmt}")
        return cls()

    def config(self) -> dict:
        """Return the `quantization_config` of config.json; the writer adds `modules_to_not_convert`."""
        return {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
            "fmt": "e4m3",
            "modules_to_not_convert": None,
        }

    def slots(self, n: int, k: int) -> tuple[Slots, Slots]:
        """Tensors of a layer [n, k]."""
        blocks = (-(-n // 128), -(-k // 128))
        required = {"weight": ((n, k), ("F8_E4M3",)), "weight_scale_inv": (blocks, FLOATS)}
        return required, {"activation_scale": ((), FLOATS)}

    def shape(self, tensors: Tensors) -> tuple[int, int]:
        """Size (n, k): that of `weight`."""
        return self.weight_shape(tensors)

    def read(self, tensors: Tensors) -> Quantized:
        """Return the layer; `BadFile` when a tensor is missing, left over, of another shape or type."""
        shape = self.check(tensors)
        return _fp8(self, shape, tensors["weight"], tensors["weight_scale_inv"])

    def write(self, q: Quantized) -> Tensors:
        """Return the tensors of `q`; `BadInput` for another format."""
        arrays = self.of_format(q, self.format)
        weight = FileTensor("F8_E4M3", arrays["weight"])
        return {"weight": weight, "weight_scale_inv": file_tensor.of(arrays["weight_scale_inv"])}


@dataclass(frozen=True)
class FP4(Layout):
    """NVFP4 (blocks of 16, E4M3 scales, one global scale) or MXFP4 (blocks of 32, power-of-two scales)."""

    format: str = "nvfp4"

    marker: ClassVar[str] = "weight_packed"
    zero_domain: ClassVar[str] = "none"

    @property
    def name(self) -> str:
        """What the config calls it."""
        return f"{self.format}-pack-quantized"

    @property
    def block(self) -> int:
        """Weights that share a scale."""
        return {"nvfp4": 16, "mxfp4": 32}[self.format]

    @classmethod
    def from_group(cls, group: dict) -> "FP4":
        """Return the layout of one of the `config_groups`, told by its group size; `BadFile` for another."""
        weights = group["weights"]
        for layout in (cls("nvfp4"), cls("mxfp4")):
            stated = (weights.get("num_bits"), weights.get("type"), weights.get("group_size"))
            if stated == (4, "float", layout.block):
                return layout
        raise BadFile(f"4-bit float by groups of 16 or 32 is read, got {weights}")

    @classmethod
    def of(cls, fmt: str) -> "FP4":
        """Return the layout for matrices in the storage format `fmt`."""
        if fmt not in ("nvfp4", "mxfp4"):
            raise BadInput(f"FP4 checkpoints hold nvfp4 and mxfp4, not {fmt}")
        return cls(fmt)

    def group(self) -> dict:
        """Return the entry of `config_groups`, without its targets: weights only, activations stay 16-bit."""
        weights = {
            "num_bits": 4,
            "type": "float",
            "symmetric": True,
            "strategy": "tensor_group" if self.format == "nvfp4" else "group",
            "group_size": self.block,
            "dynamic": False,
        }
        return {"weights": weights, "input_activations": None, "output_activations": None}

    def slots(self, n: int, k: int) -> tuple[Slots, Slots]:
        """Tensors of a layer [n, k]; `BadInput` unless the blocks divide k."""
        if k % self.block:
            raise BadInput(f"{self.name}: blocks of {self.block} do not divide {k} in_features")
        scales = ((n, k // self.block), ("F8_E4M3",) if self.format == "nvfp4" else ("U8", "F8_E8M0"))
        slots = {"weight_packed": ((n, k // 2), ("U8",)), "weight_scale": scales}
        if self.format == "nvfp4":
            slots["weight_global_scale"] = ((1,), ("F32",))
        return slots, _SCALARS

    def shape(self, tensors: Tensors) -> tuple[int, int]:
        """Size (n, k) from weight_packed."""
        packed = tensors["weight_packed"].shape if "weight_packed" in tensors else ()
        if len(packed) != 2 or 0 in packed:
            raise BadFile(f"{self.name}: weight_packed must be [out, in / 2], got {list(packed)}")
        return packed[0], packed[1] * 2

    def read(self, tensors: Tensors) -> Quantized:
        """Return the layer; `BadFile` when a tensor is missing, left over, of another shape or type."""
        shape = self.check(tensors)
        required, _ = self.slots(*shape)
        return Quantized(self.format, shape, {name: tensors[name].array for name in required})

    def write(self, q: Quantized) -> Tensors:
        """Return the tensors of `q`; `BadInput` for another format."""
        arrays = self.of_format(q, self.format)
        required, _ = self.slots(*q.shape)
        return {name: FileTensor(required[name][1][0], array) for name, array in arrays.items()}
