"""Read a checkpoint folder: config.json, the shards and their index. A tensor is read when it is asked for.

Nothing in a file is trusted: shapes and types come from headers that the safetensors library has checked, names of
shards must be plain names in the same folder, and weights that lie in a pickle (`.bin`, `.pt`, `.pth`, `.ckpt`) are
refused, because unpickling runs code.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from refquant.errors import BadFile
from refquant.formats.file_tensor import NUMPY, FileTensor

INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_MAX_JSON = 256 << 20  # bytes of an index or a config; the index of a 1,000-billion-parameter model has about 10 MB
_BITS = {2: torch.int16, 1: torch.uint8}  # what the types that NumPy lacks are viewed as


@dataclass(frozen=True)
class Header:
    """What a file says of a tensor: its shard, type and shape."""

    shard: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of its values."""
        return math.prod(self.shape)


def read_json(path: Path) -> dict:
    """Return the object in a JSON file; `BadFile` when there is none."""
    try:
        if path.stat().st_size > _MAX_JSON:
            raise BadFile(f"{path} has {path.stat().st_size} bytes; no {path.name} is that large")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadFile(f"{path} is missing") from None
    except (ValueError, RecursionError) as problem:
        raise BadFile(f"{path} is not JSON: {problem}") from problem
    if not isinstance(value, dict):
        raise BadFile(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def quantization_config(path: Path) -> dict | None:
    """Return the `quantization_config` of a folder, or what older tools wrote beside config.json; None without one."""
    config = read_json(path / "config.json")
    found = config.get("quantization_config") or config.get("compression_config")
    for name, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        if found is None and (path / name).is_file():
            found = {"quant_method": method} | read_json(path / name)
    if found is not None and not isinstance(found, dict):
        raise BadFile(f"{path / 'config.json'}: quantization_config must be an object, not {type(found).__name__}")
    return found


def _open_shard(path: Path) -> safe_open:
    """Open a shard without mapping it, so that a model takes no more address space than memory."""
    return safe_open(path, framework="pt", backend="pread")


def is_quantized(path) -> bool:
    """Whether the checkpoint folder `path` declares quantized layers."""
    return quantization_config(Path(path)) is not None


class Folder:
    """An open checkpoint folder.

    Parameters
    ----------
    path : folder

    Raises
    ------
    BadFile
        No config.json or weights, a shard missing, a header that is hostile or cut off, an index and shards that
        differ, weights in a pickle.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.config = read_json(self.path / "config.json")
        self.quantization = quantization_config(self.path)
        self.tensors: dict[str, Header] = {}
        self._open: tuple[str, safe_open] | None = None  # the shard read last
        index = self._index()
        for shard in sorted(set(index.values())) if index else self._single():
            self._add(shard)
        for name, shard in index.items():
            if name not in self.tensors:
                raise BadFile(f"{self.path / shard}: {name} is not in it, though {INDEX} says so")

    def _index(self) -> dict[str, str]:
        """Return the index, tensor -> shard; empty for a folder with one file."""
        if not (self.path / INDEX).exists():
            return {}
        index = read_json(self.path / INDEX).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise BadFile(f"{self.path / INDEX}: weight_map must map tensors to shards")
        for name, shard in index.items():
            if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise BadFile(
                    f"{self.path / INDEX}: {name} is in {shard!r}, which is no safetensors file of the folder"
                )
        return index

    def _single(self) -> list[str]:
        """Return the name of the one weights file."""
        found = sorted(file.name for file in self.path.glob("*.safetensors"))
        if len(found) == 1:
            return found
        if found:
            raise BadFile(f"{self.path} has {len(found)} safetensors files and no {INDEX} that says what is in them")
        pickles = sorted(file.name for file in self.path.iterdir() if file.suffix in PICKLES)
        if pickles:
            raise BadFile(
                f"{self.path}: the weights are in {pickles[0]}, a pickle, which can run code and is never loaded; have "
                "its maker, or a machine without secrets, save them as safetensors"
            )
        raise BadFile(f"{self.path} has no weights: no {INDEX} and no safetensors file")

    def _add(self, shard: str) -> None:
        """Open a shard and note what is in it."""
        path = self.path / shard
        if not path.is_file():
            raise BadFile(f"{path} is missing: {INDEX} names it as a shard of this model")
        try:
            file = _open_shard(path)
            names = list(file.keys())
            headers = [file.get_slice(name) for name in names]
        except (SafetensorError, OSError, OverflowError, MemoryError) as problem:
            raise BadFile(f"{path} is not a whole safetensors file: {problem}") from problem
        for name, header in zip(names, headers, strict=True):
            if name in self.tensors:
                raise BadFile(f"{path}: {name} is in {self.tensors[name].shard} too")
            self.tensors[name] = Header(shard, header.get_dtype(), tuple(header.get_shape()))

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        self._open = None

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor as torch has it, read from its shard into memory of its own."""
        if name not in self.tensors:
            raise BadFile(f"{self.path}: the tensor {name} is missing")
        shard = self.tensors[name].shard
        if self._open is None or self._open[0] != shard:
            self._open = shard, _open_shard(self.path / shard)
        return self._open[1].get_tensor(name)

    def read(self, name: str) -> FileTensor:
        """Return a tensor as the layouts of `refquant.formats` take it; `BadFile` for a type they do not know."""
        tensor, dtype = self.tensor(name), self.tensors[name].dtype
        if dtype not in NUMPY:
            raise BadFile(f"{self.path}: {name} has the type {dtype}, which is not read")
        if dtype == "BF16" or dtype.startswith("F8"):
            tensor = tensor.view(_BITS[tensor.element_size()])
        return FileTensor(dtype, tensor.numpy().view(NUMPY[dtype]))

    def layer(self, module: str) -> dict[str, str]:
        """Return the tensors of a layer, its bias apart: name within the layer -> name in the file."""
        prefix = f"{module}."
        return {
            name.removeprefix(prefix): name
            for name in self.tensors
            if name.startswith(prefix) and name != prefix + "bias"
        }

    def read_layer(self, module: str) -> dict[str, FileTensor]:
        """Return the tensors of a layer, its bias apart, by their names within the layer."""
        return {short: self.read(name) for short, name in self.layer(module).items()}
