"""Quantize a checkpoint folder tensor by tensor: memory holds one matrix and one shard, never the model.

For the methods that look at weights alone: round to nearest on integer grids, FP8, FP4, NF4, LLM.int8. Work is kept in
a folder beside the target, whole shard by whole shard, so that an interrupted run continues (`resume`) after the last
shard it wrote; the result is the same to the byte.
"""

import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers.pytorch_utils import Conv1D

from refquant import ops
from refquant.errors import BadFile, BadInput, RefquantError
from refquant.models import walk
from refquant.models.checkpoint import extras, journal
from refquant.models.checkpoint.folder import Folder
from refquant.models.checkpoint.opening import empty_model, read_config
from refquant.models.checkpoint.saving import check, pack
from refquant.models.checkpoint.schemes import Scheme
from refquant.models.checkpoint.writer import ShardWriter, as_torch, check_target, take_place
from refquant.models.report import Layer, Report
from refquant.quantized import Quantized, find_format

SHARD_BYTES = 256 << 20
ROW_WEIGHTS = 4 << 20  # weights of a matrix that are rounded at a time


@dataclass
class _Progress:
    """What whole shards hold: of each its tensors, and the tensors of the source that are done, each with a count."""

    folder: Path
    settings: dict
    shards: ShardWriter
    complete: dict[str, int] = field(default_factory=dict)  # source tensor -> its zero-points that are 0
    _waiting: dict[str, tuple[str, int]] = field(default_factory=dict)  # source tensor -> last output, count

    @classmethod
    def open(cls, folder: Path, settings: dict, resume: bool) -> "_Progress":
        """Begin anew, or take up what an interrupted run of the same settings left."""
        progress = cls(folder, settings, ShardWriter(folder, settings["shard_bytes"]))
        if left := journal.take_up(folder, settings, resume):
            progress.shards.shards, progress.complete = left["shards"], left["complete"]
        return progress

    def add(self, source: str, outputs: dict[str, torch.Tensor], count: int) -> None:
        """Add what became of a tensor of the source; whatever a shard holds already is passed over."""
        before, done = len(self.shards.shards), self.shards.written
        for name, tensor in outputs.items():
            if name not in done:
                self.shards.add(name, tensor)
        self._waiting[source] = (name, count)
        if len(self.shards.shards) > before:
            written = self.shards.written
            for source, (last, count) in list(self._waiting.items()):
                if last in written:
                    self.complete[source] = count
                    del self._waiting[source]
            self.note()

    def note(self) -> None:
        """Write the journal."""
        done = {"settings": self.settings, "shards": self.shards.shards, "complete": self.complete}
        journal.note(self.folder, done)

    def finish(self) -> int:
        """Write the last shard; return how many zero-points are 0."""
        self.shards.finish()
        return sum(self.complete.values()) + sum(count for _, count in self._waiting.values())


def quantize_folder(
    source,
    target,
    format: str,  # noqa: A002
    grid: str,
    dtype: str = "float16",
    resume: bool = False,
    progress: bool = False,
    command: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Report:
    """Quantize every Linear layer of the decoder blocks of a folder of float weights into a new folder.

    Parameters
    ----------
    source, target : path
        A folder of safetensors, sharded or not; the folder to be made (or replaced).
    format : str
        Checkpoint format, one of `FORMATS`.
    grid : str
        Storage format of the layers, such as "int4-g128-sym", "fp8-e4m3-block", "nf4"; each with its own rounding.
    dtype : str
        Of the tensors that are not quantized: "float16", "bfloat16" or "float32".
    resume : bool
        Continue what an interrupted run with the same settings left. Without it such remains are removed.
    progress : bool
        Show a bar over the weights.
    command : str, optional
        What the README says the folder was made with.
    shard_bytes : int
        Largest size of one file, and about the memory that writing takes.

    Raises
    ------
    BadFile
        The source is broken or quantized already; what is to be resumed has other settings.
    BadInput
        NaN or infinity in weights; something that the format cannot hold. The message names the tensor. Nothing is
        left behind.

    Notes
    -----
    Leaves out: methods that look at activations (GPTQ, AWQ), for which see `quantize_blocks`; the fused experts of
    mixture models, which are no Linear layers to transformers and stay in float.
    """
    source, target, began = Path(source), Path(target), time.perf_counter()
    check_target(target)
    work = target.with_name(f".{target.name}.partial")
    with Folder(source) as folder:
        if folder.quantization is not None:
            raise BadFile(f"{source} is quantized already; use convert")
        linears, others = _linears(source)
        shapes = _shapes(folder, linears)
        scheme = check(format, grid, shapes, others, dtype)
        headers = [[name, header.dtype, list(header.shape)] for name, header in folder.tensors.items()]
        report = Report("rtn" if find_format(grid).family == "int" else find_format(grid).family, grid)
        report.layers = [Layer(n, grid, s, find_format(grid).nbytes(s), None) for n, s in shapes.items()]
        settings = {"format": format, "grid": grid, "dtype": dtype, "shard_bytes": shard_bytes, "source": headers}
        state = _Progress.open(work, settings, resume)
        try:
            with tqdm(desc=grid, unit="weight", unit_scale=True, disable=not progress, leave=False) as bar:
                bar.total = sum(header.count for header in folder.tensors.values())
                for name, header in folder.tensors.items():
                    if name not in state.complete:
                        state.add(name, *_outputs(folder, scheme, name, linears, grid, dtype))
                    if name.removesuffix(".weight") not in shapes:
                        report.other_bytes += header.count * getattr(torch, dtype).itemsize
                    bar.update(header.count)
            zeros = state.finish()
        except RefquantError:
            shutil.rmtree(work, ignore_errors=True)
            raise
        finish_folder(folder, work, target, scheme, dtype, command, zeros)
    report.seconds = time.perf_counter() - began
    return report


def finish_folder(
    folder: Folder, work: Path, target: Path, scheme: Scheme, dtype: str, command: str | None, zeros: int
) -> None:
    """Write what belongs beside the weights, and give the folder its name."""
    for left in work.glob("activations-*"):  # of a run that was interrupted while it removed them
        shutil.rmtree(left)
    for name in extras.COPIED:  # as it may have been interrupted here, too
        (work / name).unlink(missing_ok=True)
    extras.write_config(work, folder.config, scheme, dtype)
    extras.copy_files(folder.path, work)
    given = [argument for argument in sys.argv[1:] if argument != "--resume"]  # the bytes do not depend on it
    command = command or " ".join([Path(sys.argv[0]).name, *given])
    extras.write_readme(work, target.name, scheme, command, extras.notes(scheme, zeros))
    take_place(work, target, target.with_name(f".{target.name}.old"), journal.JOURNAL)


def as_dtype(name: str, tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    """Return a tensor that is not quantized as it is written; `BadInput` for what the type cannot hold."""
    if not tensor.is_floating_point():
        return tensor
    cast = tensor.to(getattr(torch, dtype))
    if not torch.isfinite(cast).all():
        raise BadInput(f"{name} holds NaN, infinity or values beyond {dtype}; try another dtype")
    return cast


def _linears(source: Path) -> tuple[dict[str, bool], tuple[str, ...]]:
    """Return the Linear layers of the decoder blocks, each with whether it is stored transposed, and the other ones."""
    model = empty_model(read_config(source))
    blocks = walk.blocks(model)
    inside = {id(module) for module in blocks.modules()}
    found = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D)}
    linears = {name: isinstance(m, Conv1D) for name, m in found.items() if id(m) in inside}
    return linears, tuple(name for name in found if name not in linears)


def _shapes(folder: Folder, linears: dict[str, bool]) -> dict[str, tuple[int, int]]:
    """Return the shapes (out, in) of the layers; `BadFile` for one that the folder lacks."""
    found = {}
    for name, transposed in linears.items():
        header = folder.tensors.get(f"{name}.weight")
        if header is None or len(header.shape) != 2:
            raise BadFile(f"{folder.path}: the matrix {name}.weight is missing")
        found[name] = header.shape[::-1] if transposed else header.shape
    return found


def _outputs(
    folder: Folder, scheme: Scheme, name: str, linears: dict[str, bool], grid: str, dtype: str
) -> tuple[dict[str, torch.Tensor], int]:
    """Return what becomes of a tensor of the source, and how many of its zero-points are 0."""
    tensor = folder.tensor(name)
    module = name.removesuffix(".weight")
    if module == name or module not in linears:
        return {name: as_dtype(name, tensor, dtype)}, 0
    w = tensor.float().numpy()
    try:
        q = _quantize(w.T if linears[module] else w, grid)
    except RefquantError as problem:
        raise BadInput(f"{name}: {problem}") from problem
    outputs = {f"{module}.{inner}": as_torch(value) for inner, value in pack(scheme, module, q).items()}
    return outputs, int((ops.unpack(q)["zeros"] == 0).sum()) if "zeros" in q.arrays else 0


def _quantize(w: np.ndarray, grid: str) -> Quantized:
    """Quantize a matrix; on integer grids some rows at a time, which are independent there, to save memory."""
    if find_format(grid).family != "int":
        return ops.quantize(w, grid)
    rows = max(1, ROW_WEIGHTS // w.shape[1])
    parts = [ops.quantize(w[start : start + rows], grid).arrays for start in range(0, len(w), rows)]
    return Quantized(grid, w.shape, {key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
