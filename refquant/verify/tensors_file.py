"""The tensors of a safetensors file or folder, mapped, in NumPy; and a model's dense weights by name.

The safetensors library checks each header before a byte of it is believed. Pickles are never read.
"""

import json
import struct
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from refquant.errors import BadFile, RefquantError
from refquant.formats import gguf
from refquant.formats.file_tensor import NUMPY, FileTensor

_LARGEST_JSON = 256 << 20


class TensorFiles:
    """Tensors by name: `files[name]` reads one as a `FileTensor`, `files.shapes` has the headers."""

    def __init__(self, path):
        self.path = Path(path)
        files = sorted(self.path.glob("*.safetensors")) if self.path.is_dir() else [self.path]
        if not files:
            raise BadFile(f"{self.path} has no safetensors file")
        self.shapes: dict[str, tuple] = {}  # name -> (file, dtype, shape, first byte, count of bytes)
        for file in files:
            self._add(file)

    def _add(self, file: Path) -> None:
        try:
            with safe_open(file, framework="np"):
                pass  # the library has checked lengths, offsets and shapes
            with open(file, "rb") as stream:
                (size,) = struct.unpack("<Q", stream.read(8))
                header = json.loads(stream.read(size))
        except (SafetensorError, OSError, OverflowError, ValueError) as problem:
            raise BadFile(f"{file} is not a whole safetensors file: {problem}") from problem
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if name in self.shapes:
                raise BadFile(f"{file}: {name} is in {self.shapes[name][0].name}, too")
            begin, end = entry["data_offsets"]
            self.shapes[name] = (file, entry["dtype"], tuple(entry["shape"]), 8 + size + begin, end - begin)

    def __iter__(self):
        return iter(self.shapes)

    def __contains__(self, name):
        return name in self.shapes

    def __getitem__(self, name: str) -> FileTensor:
        file, dtype, shape, begin, count = self.shapes[name]
        if dtype not in NUMPY:
            raise BadFile(f"{file}: {name} has the type {dtype}, which is not read")
        data = np.fromfile(file, np.uint8, count=count, offset=begin)
        return FileTensor(dtype, data.view(NUMPY[dtype]).reshape(shape))

    def layer(self, module: str) -> dict[str, FileTensor]:
        """Tensors of a layer but its bias, by their names within it."""
        prefix = f"{module}."
        return {n.removeprefix(prefix): self[n] for n in self if n.startswith(prefix) and n != prefix + "bias"}


def read_json(path: Path) -> dict:
    """Return the object in a JSON file."""
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise BadFile(f"{path} is too large for a {path.name}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise BadFile(f"{path} cannot be read: {problem}") from problem
    if not isinstance(value, dict):
        raise BadFile(f"{path} must hold a JSON object")
    return value


_GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output": "lm_head",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class Dense:
    """The unquantized model: `weight(module)` float32 [out, in], or None; from safetensors or GGUF."""

    def __init__(self, path):
        self.path = Path(path)
        self.gguf = gguf.read(self.path) if self.path.suffix == ".gguf" else None
        self.files = None if self.gguf else TensorFiles(self.path)

    def weight(self, module: str) -> np.ndarray | None:
        """Weights of a layer, called as in either kind of file."""
        if self.gguf:
            tensor = self.gguf.tensors.get(f"{module}.weight")
            return None if tensor is None or len(tensor.shape) != 2 else decoded(tensor)
        for name in (module, _hub_name(module)):
            if f"{name}.weight" in self.files:
                tensor = self.files[f"{name}.weight"]
                return tensor.floats().astype(np.float32) if tensor.dtype in ("F16", "BF16", "F32") else None
        return None


def _hub_name(module: str) -> str:
    parts = module.split(".")
    name = _GGUF_NAMES.get(parts[-1], parts[-1])
    return f"model.layers.{parts[1]}.{name}" if parts[0] == "blk" and len(parts) == 3 else name


def decoded(tensor) -> np.ndarray | None:
    """Weights of a tensor of a GGUF file, None for a type that refquant cannot decode."""
    try:
        return tensor.floats()
    except RefquantError:
        return None
