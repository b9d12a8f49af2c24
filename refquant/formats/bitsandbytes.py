"""bitsandbytes checkpoints (`quant_method: bitsandbytes`): LLM.int8 and NF4.

A Linear layer [n, k], c = n k weights, B blocks of b (64 unless the state says otherwise)::

    tensor                                       type   shape               meaning
    weight                                       I8     [n, k]              codes                            int8
    SCB                                          F32    [n]                 largest magnitude of a row       int8
    weight_format                                U8     []                  0: rows as they are              int8
    weight                                       U8     [ceil(c / 2), 1]    two codes, first in HIGH half    nf4
    weight.absmax                                F32    [B]                 scale of a block                 nf4
                                                 U8     [B]                 its code, double quantization    nf4-dq
    weight.quant_map                             F32    [16]                value of each code               nf4
    weight.nested_absmax                         F32    [ceil(B / 256)]     scale of 256 scales              nf4-dq
    weight.nested_quant_map                      F32    [256]               value of each of their codes     nf4-dq
    weight.quant_state.bitsandbytes__nf4         U8     [bytes]             JSON, see below

    {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [n, k],
     "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.0171...}        the last three in nf4-dq

What the numbers mean, and the bits per weight, is told in `nf4` and `llm_int8`.

Source: bitsandbytes 0.50.2: `QuantState.as_dict` (functional.py), `Linear8bitLt._save_to_state_dict` (nn/modules.py).
Against other code: bitsandbytes on a CPU repacks 4-bit weights in place at the first forward pass, and saves them so
without an error; such a file looks like a good one. Save before any forward pass. Its CPU decoder takes every row to
begin a new block, so where the block does not divide k it returns other weights than it was given; this module counts
blocks through the flattened matrix, as its encoder and its GPU decoder do.
Leaves out: FP4, `bnb_4bit_quant_storage` other than uint8, weight_format col32 and col_turing.
"""

import json
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from refquant.errors import BadFile, BadInput
from refquant.formats import file_tensor
from refquant.formats.checkpoint_layout import Layout, other_shape
from refquant.formats.file_tensor import Slots, Tensors
from refquant.formats.nf4 import NESTED_BLOCK
from refquant.grids import as_grid
from refquant.quantized import Quantized, find_format

_STATE = "weight.quant_state.bitsandbytes__nf4"
_MAX_STATE = 4096  # bytes of JSON; real ones have about 170


def _config(bits: int, **settings) -> dict:
    return {
        "quant_method": "bitsandbytes",
        "load_in_8bit": bits == 8,
        "load_in_4bit": bits == 4,
        "llm_int8_threshold": 6.0,
        "llm_int8_skip_modules": None,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "float16",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_use_double_quant": False,
    } | settings


def from_config(config: dict) -> "Int8 | NF4":
    """Return the layout that a `quantization_config` declares; `BadFile` for what is not read."""
    if config.get("load_in_8bit") is True:
        return Int8()
    if config.get("load_in_4bit") is not True:
        raise BadFile("bitsandbytes: neither load_in_8bit nor load_in_4bit is true")
    for key, known in (("bnb_4bit_quant_type", "nf4"), ("bnb_4bit_quant_storage", "uint8")):
        if config.get(key, known) != known:
            raise BadFile(f"bitsandbytes: {key} {config[key]!r}; {known} is read")
    return NF4(double=config.get("bnb_4bit_use_double_quant") is True)


@dataclass(frozen=True)
class Int8(Layout):
    """LLM.int8: `load_in_8bit`."""

    name: ClassVar[str] = "bitsandbytes int8"
    marker: ClassVar[str] = "SCB"
    zero_domain: ClassVar[str] = "none"
    format: ClassVar[str] = "llm-int8"

    def config(self) -> dict:
        """Return the `quantization_config` of config.json; the writer adds `llm_int8_skip_modules`."""
        return _config(8)

    def slots(self, n: int, k: int) -> tuple[Slots, Slots]:
        """Tensors of a layer [n, k]."""
        return {"weight": ((n, k), ("I8",)), "SCB": ((n,), ("F32",))}, {"weight_format": ((), ("U8",))}

    def shape(self, tensors: Tensors) -> tuple[int, int]:
        """Size (n, k): that of `weight`."""
        return self.weight_shape(tensors)

    def read(self, tensors: Tensors) -> Quantized:
        """Return the layer; `BadFile` when a tensor is missing, left over, of another shape, or rows are reordered."""
        shape = self.check(tensors)
        if "weight_format" in tensors and tensors["weight_format"].array != 0:
            raise BadFile(f"{self.name}: weight_format {tensors['weight_format'].array}; 0 (rows as they are) is read")
        if not np.isfinite(tensors["SCB"].array).all():
            raise BadFile(f"{self.name}: SCB holds NaN or infinity")
        return Quantized(self.format, shape, {"CB": tensors["weight"].array, "SCB": tensors["SCB"].array})

    def write(self, q: Quantized) -> Tensors:
        """Return the tensors of `q`; `BadInput` for another format."""
        arrays = self.of_format(q, self.format)
        tensors = {"weight": arrays["CB"], "SCB": arrays["SCB"], "weight_format": np.array(0, np.uint8)}
        return {name: file_tensor.of(array) for name, array in tensors.items()}


@dataclass(frozen=True)
class NF4(Layout):
    """NF4: `load_in_4bit`. `double`: its scales are quantized too; `dtype`: what bitsandbytes decodes to."""

    double: bool = False
    dtype: str = "float16"

    name: ClassVar[str] = "bitsandbytes nf4"
    marker: ClassVar[str] = _STATE
    zero_domain: ClassVar[str] = "none"

    @classmethod
    def of(cls, fmt: str, dtype: str = "float16") -> "NF4":
        """Return the layout for matrices in the storage format `fmt`; `BadInput` unless it is an nf4 one."""
        if find_format(fmt).family != "nf4":
            raise BadInput(f"{cls.name} holds nf4 formats, not {fmt}")
        return cls(as_grid(fmt).nested, dtype)

    def config(self) -> dict:
        """Return the `quantization_config` of config.json; the writer adds `llm_int8_skip_modules`."""
        return _config(4, bnb_4bit_use_double_quant=self.double, bnb_4bit_compute_dtype=self.dtype)

    def slots(self, n: int, k: int, block: int = 64, state: int | None = None) -> tuple[Slots, Slots]:
        """Tensors of a layer [n, k] in blocks of `block`, with `state` bytes of JSON (None: as many as written)."""
        blocks = -(-n * k // block)
        state = len(self._state(block, (n, k), 0.0)) if state is None else state
        slots = {
            "weight": ((-(-n * k // 2), 1), ("U8",)),
            "weight.absmax": ((blocks,), ("U8" if self.double else "F32",)),
            "weight.quant_map": ((16,), ("F32",)),
            _STATE: ((state,), ("U8",)),
        }
        if self.double:
            slots["weight.nested_absmax"] = ((-(-blocks // NESTED_BLOCK),), ("F32",))
            slots["weight.nested_quant_map"] = ((256,), ("F32",))
        return slots, {}

    def state(self, tensors: Tensors) -> dict:
        """Return the JSON of a layer, checked; `BadFile` when it is not one of NF4, or as large as none is."""
        raw = tensors.get(_STATE)
        if raw is None or raw.dtype != "U8" or len(raw.shape) != 1 or raw.shape[0] > _MAX_STATE:
            raise BadFile(f"{self.name}: {_STATE} must be U8 [bytes], at most {_MAX_STATE}")
        try:
            state = json.loads(raw.array.tobytes())
        except (ValueError, RecursionError) as problem:
            raise BadFile(f"{self.name}: {_STATE} is not JSON: {problem}") from problem
        shape = state.get("shape") if isinstance(state, dict) else None
        if not isinstance(shape, list) or len(shape) != 2 or not all(type(d) is int and 0 < d < 2**31 for d in shape):
            raise BadFile(f"{self.name}: shape must be [out, in], got {shape!r}")
        block = state.get("blocksize")
        if state.get("quant_type") != "nf4" or type(block) is not int or block not in [2**i for i in range(5, 13)]:
            raise BadFile(f"{self.name}: {state.get('quant_type')!r} in blocks of {block!r}; nf4 of 32..4096 is read")
        if self.double:
            offset = state.get("nested_offset")
            if type(offset) not in (int, float) or not math.isfinite(offset):
                raise BadFile(f"{self.name}: nested_offset must be a number, got {offset!r}")
            if state.get("nested_blocksize") != NESTED_BLOCK or state.get("nested_dtype") != "float32":
                raise BadFile(f"{self.name}: nested blocks of {NESTED_BLOCK} in float32 are read, got {state}")
        return state

    def shape(self, tensors: Tensors) -> tuple[int, int]:
        """Size (n, k): what the JSON says, if `weight` has room for just that."""
        n, k = self.state(tensors)["shape"]
        dims = tensors["weight"].shape if "weight" in tensors else ()
        if math.prod(dims) != -(-n * k // 2):
            raise BadFile(f"{self.name}: {[n, k]} weights take {-(-n * k // 2)} bytes, weight has {list(dims)}")
        return n, k

    def problems(self, tensors: Tensors, shape: tuple[int, int] | None = None) -> list[str]:
        """As of any layout, with the block size and length of the JSON that is there."""
        try:
            n, k = self.shape(tensors)
        except BadFile as problem:
            return [str(problem)]
        required, _ = self.slots(n, k, self.state(tensors)["blocksize"], tensors[_STATE].shape[0])
        return file_tensor.problems(tensors, required, {}) + other_shape(shape, (n, k))

    def read(self, tensors: Tensors) -> Quantized:
        """Return the layer; `BadFile` when a tensor is missing, left over or of another shape, or the JSON is bad."""
        shape, state = self.check(tensors), self.state(tensors)
        block = "" if state["blocksize"] == 64 else f"-b{state['blocksize']}"
        arrays = {name.removeprefix("weight."): tensor.array for name, tensor in tensors.items() if name != _STATE}
        if self.double:
            arrays["nested_offset"] = np.array(state["nested_offset"], np.float32)
        return Quantized(f"nf4{block}{'-dq' if self.double else ''}", shape, arrays)

    def write(self, q: Quantized) -> Tensors:
        """Return the tensors of `q`; `BadInput` for another format."""
        if find_format(q.format).family != "nf4" or as_grid(q.format).nested != self.double:
            raise BadInput(f"{self.name}: this checkpoint is nf4{'-dq' if self.double else ''}, the layer {q.format}")
        arrays = dict(q.arrays)
        state = self._state(as_grid(q.format).group_size, q.shape, arrays.pop("nested_offset", 0.0))
        tensors = {"weight": arrays.pop("weight"), _STATE: np.frombuffer(state, np.uint8)}
        tensors |= {f"weight.{name}": array for name, array in arrays.items()}
        return {name: file_tensor.of(array) for name, array in tensors.items()}

    def _state(self, block: int, shape: tuple[int, int], offset) -> bytes:
        state = {"quant_type": "nf4", "blocksize": block, "dtype": self.dtype, "shape": list(shape)}
        if self.double:
            nested = {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": float(offset)}
            state |= nested
        return json.dumps(state).encode()
