"""Write a checkpoint folder whole or not at all, one shard of tensors in memory at a time."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from refquant.errors import BadInput
from refquant.formats.file_tensor import FileTensor
from refquant.models.checkpoint.folder import INDEX

SHARD_BYTES = 2 << 30
_TORCH = {
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}


def as_torch(tensor: FileTensor) -> torch.Tensor:
    """Return a `FileTensor` as torch has it."""
    array = np.array(tensor.array, order="C")  # a copy: torch wants memory that may be written
    if tensor.dtype not in _TORCH:
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(f"int{8 * array.itemsize}")).view(_TORCH[tensor.dtype])


@contextlib.contextmanager
def replacing_folder(path) -> Iterator[Path]:
    """Yield a new folder beside `path`, which takes its name when the block ends well and disappears when it does not.

    A reader sees the old folder, none for a moment, or the new one: never a mixture. Raises `BadInput` when `path` is
    there and is not the folder of a model.
    """
    path = Path(path)
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(4)
    partial, old = (path.with_name(f".{path.name}.{mark}.{end}") for end in ("part", "old"))
    partial.mkdir()
    try:
        yield partial
        take_place(partial, path, old)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_target(path: Path) -> None:
    """Raise `BadInput` when `path` is there and is neither empty nor the folder of a model."""
    if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not (path / "config.json").is_file())):
        raise BadInput(f"{path} is there and is not the folder of a model; it will not be replaced")


def take_place(partial: Path, path: Path, old: Path, without: str | None = None) -> None:
    """Rename `partial` to `path`; what was there is removed afterwards, or put back when that fails.

    The file `without` is removed at the last moment.
    """
    for file in partial.iterdir():
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    if without:
        (partial / without).unlink(missing_ok=True)
    if not path.exists():
        partial.rename(path)
        return
    path.rename(old)
    try:
        partial.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


class ShardWriter:
    """Collect tensors and write a shard whenever they exceed `limit` bytes; `finish` names the shards and the index.

    Shards already in the folder (of an interrupted run) are kept and counted; `written` lists what is in them.
    """

    def __init__(self, folder: Path, limit: int = SHARD_BYTES):
        self.folder, self.limit = folder, limit
        self.shards: list[dict[str, int]] = []  # of each shard: tensor -> bytes
        self._waiting: dict[str, torch.Tensor] = {}

    @property
    def written(self) -> set[str]:
        """Names of the tensors that lie in whole shards."""
        return {name for shard in self.shards for name in shard}

    def _name(self, index: int) -> Path:
        return self.folder / f"shard-{index:05}.safetensors"

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Add a tensor; a shard that it would overfill is written first."""
        size = sum(waiting.nbytes for waiting in self._waiting.values())
        if self._waiting and size + tensor.nbytes > self.limit:
            self.flush()
        self._waiting[name] = tensor.contiguous()

    def flush(self) -> None:
        """Write what is waiting as one shard: to a temporary name, then renamed."""
        if not self._waiting:
            return
        path = self._name(len(self.shards))
        partial = path.with_suffix(".part")
        try:
            save_file(self._waiting, partial, metadata={"format": "pt"})
        except SafetensorError as problem:  # a full disk, mostly
            raise OSError(f"{self.folder}: {problem}") from problem
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        partial.rename(path)
        self.shards.append({name: tensor.nbytes for name, tensor in self._waiting.items()})
        self._waiting = {}

    def _rename(self, index: int, name: str) -> None:
        """Give a shard its name, unless a run that was interrupted here already has."""
        if self._name(index).exists():
            self._name(index).rename(self.folder / name)

    def finish(self) -> None:
        """Write the last shard, give all of them their names, and write the index when there are several."""
        self.flush()
        if len(self.shards) == 1:
            self._rename(0, "model.safetensors")
            return
        weight_map = {}
        for index, shard in enumerate(self.shards):
            name = f"model-{index + 1:05}-of-{len(self.shards):05}.safetensors"
            self._rename(index, name)
            weight_map |= dict.fromkeys(shard, name)
        total = sum(size for shard in self.shards for size in shard.values())
        write_json(self.folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_json(path: Path, value: dict) -> None:
    """Write an object as JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
