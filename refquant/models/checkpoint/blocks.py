"""Quantize a checkpoint folder block by block, with a method that looks at activations (GPTQ, AWQ).

Memory holds one decoder block in float32, what the method needs of its inputs, and one batch of activations; the
activations between two blocks lie in files. All of it is kept in a folder beside the target::

    shard-00000.safetensors ...     what is quantized, at least one to a block
    activations-00007/00000.npy ... what enters block 7, a batch a file
    refquant-progress.json          how many blocks are done, written after each

so that an interrupted run continues (`resume`) with the block at which it stopped, to the same bytes. The numbers are
those of `models.quantize` on the model in memory: it is the same loop.
"""

import contextlib
import hashlib
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from refquant.errors import BadFile, BadInput, RefquantError
from refquant.grids import as_grid
from refquant.methods.registry import find_method
from refquant.models import walk
from refquant.models.calibrate import Stream
from refquant.models.checkpoint import journal
from refquant.models.checkpoint.folder import Folder
from refquant.models.checkpoint.opening import read_config
from refquant.models.checkpoint.saving import check, int_fields, pack
from refquant.models.checkpoint.schemes import Scheme
from refquant.models.checkpoint.stream import SHARD_BYTES, as_dtype, finish_folder
from refquant.models.checkpoint.writer import ShardWriter, as_torch, check_target
from refquant.models.linear import QuantLinear
from refquant.models.quantize import as_the_method_needs, quantize_block
from refquant.models.report import Layer, Report


def quantize_blocks(
    source,
    target,
    format: str,  # noqa: A002
    calibration: np.ndarray,
    method: str = "gptq",
    grid: str = "int4-g128-sym",
    dtype: str = "float16",
    batch: int = 4,
    true_sequential: bool = True,
    resume: bool = False,
    progress: bool = False,
    command: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    **options,
) -> Report:
    """Quantize every Linear layer of the decoder blocks of a folder of float weights into a new folder.

    Parameters
    ----------
    source, target : path
        A folder of safetensors, sharded or not; the folder to be made (or replaced).
    format : str
        Checkpoint format, one of `FORMATS`.
    calibration : int [windows, context]
        Token ids.
    method, grid, batch, true_sequential, options
        As for `models.quantize`; `backend="numba"` among the options is the method's.
    dtype : str
        Of the tensors that are not quantized: "float16", "bfloat16" or "float32".
    resume : bool
        Continue what an interrupted run with the same settings left. Without it such remains are removed.
    progress : bool
        Show a bar over the weights.
    command : str, optional
        What the README says the folder was made with.
    shard_bytes : int
        Largest size of one file.

    Raises
    ------
    BadFile
        The source is broken, quantized already, or lacks a tensor of a block; what is to be resumed has other settings.
    BadInput
        Something that the format cannot hold (found before any work); NaN or infinity in weights or activations.
        Nothing is left behind.

    Notes
    -----
    Leaves out: models whose decoder blocks take more than the hidden state from one another.
    """
    source, target = Path(source), Path(target)
    entry, grid = find_method(method), as_grid(grid)
    check_target(target)
    if not entry.needs:
        raise BadInput(f"{method} looks at weights only; it streams tensor by tensor (quantize_folder)")
    calibration, batch = as_the_method_needs(entry, calibration, batch)
    with Folder(source) as folder:
        if folder.quantization is not None:
            raise BadFile(f"{source} is quantized already; use convert")
        model = _Model(folder)
        mapped = bool(options.get("act_order")) and not options.get("static_groups")
        scheme = check(format, grid.name, model.shapes, model.others, dtype, mapped)
        state = _State.open(
            target.with_name(f".{target.name}.partial"),
            {
                "method": method,
                "grid": grid.name,
                "options": options,
                "format": format,
                "dtype": dtype,
                "batch": batch,
                "true_sequential": true_sequential,
                "calibration": hashlib.sha256(np.ascontiguousarray(calibration, np.int64)).hexdigest(),
                "shard_bytes": shard_bytes,
                "source": [[name, header.dtype, list(header.shape)] for name, header in folder.tensors.items()],
            },
            resume,
        )
        report = Report(method, grid.name, state.seconds, state.layers)
        try:
            if state.blocks < len(model.blocks):
                _run(model, state, report, entry, grid, calibration, scheme, progress, options)
            for name in folder.tensors:
                if name not in model.taken:
                    tensor = as_dtype(name, folder.tensor(name), dtype)
                    report.other_bytes += tensor.nbytes
                    state.shards.add(name, tensor)
            state.shards.finish()
        except RefquantError:
            shutil.rmtree(state.folder, ignore_errors=True)
            raise
        report.other_bytes += state.other_bytes
        finish_folder(folder, state.folder, target, scheme, dtype, command, state.zeros)
    return report


def _run(model: "_Model", state: "_State", report: Report, entry, grid, calibration, scheme, progress, options) -> None:
    """Quantize the blocks that are not done yet."""
    began = time.perf_counter() - state.seconds
    activations, count = _OnDisk(state.folder, state.blocks), len(model.blocks)
    with model.entering():
        stream = Stream(model.model, calibration, state.settings["batch"], activations)
    shown = {"desc": f"{entry.name} {grid.name}", "disable": not progress, "leave": False}
    bar = tqdm(total=model.weights, unit="weight", unit_scale=True, **shown)
    bar.update(report.weights)
    with bar:
        for index in range(state.blocks, count):
            block = model.bring(index)
            last, turns = index + 1 == count, state.settings["true_sequential"]
            quantize_block(block, index, entry, grid, stream, report, "dense", bar.update, last, turns, **options)
            state.add(model.names[index], block, scheme)
            report.seconds = time.perf_counter() - began
            state.note(report)
            activations.forget(index)
            model.blocks[index] = nn.Module()  # its memory is free again


class _Model:
    """The model of a folder without its weights, which come when they are asked for.

    `shapes`: the Linear layers of the blocks, (out, in) by name; `others`: the Linear layers outside; `names`: the
    blocks' own; `taken`: every tensor of a block.
    """

    def __init__(self, folder: Folder):
        self.folder = folder
        with walk.without_parameters():
            self.model = AutoModelForCausalLM.from_config(read_config(folder.path), dtype=torch.float32).eval()
        self.model.requires_grad_(False)
        self.blocks = walk.blocks(self.model)
        known = {id(module): name for name, module in self.model.named_modules()}
        self.names = [known[id(block)] for block in self.blocks]
        self.shapes, self.taken = {}, set()
        for name, block in zip(self.names, self.blocks, strict=True):
            for inner, layer in walk.linears(block).items():
                self.shapes[f"{name}.{inner}"] = tuple(walk.weight(layer).shape)
            for inner, tensor in block.state_dict().items():
                self._check(f"{name}.{inner}", tensor)
        linears = (name for name, m in self.model.named_modules() if isinstance(m, nn.Linear | Conv1D))
        self.others = tuple(name for name in linears if name not in self.shapes)

    @property
    def weights(self) -> int:
        """Weights that will be quantized."""
        return sum(rows * columns for rows, columns in self.shapes.values())

    def _read(self, name: str) -> torch.Tensor:
        return self.folder.tensor(name).float()

    def _check(self, name: str, tensor: torch.Tensor) -> None:
        header = self.folder.tensors.get(name)
        if header is None:
            raise BadFile(f"{self.folder.path}: the tensor {name} is missing")
        if header.shape != tuple(tensor.shape):
            found, wanted = list(header.shape), list(tensor.shape)
            raise BadFile(f"{self.folder.path}: {name} has the shape {found}, the config asks for {wanted}")
        self.taken.add(name)

    def bring(self, index: int) -> nn.Module:
        """Return a block with its weights, float32."""
        block, name = self.blocks[index], self.names[index]
        block.load_state_dict({inner: self._read(f"{name}.{inner}") for inner in block.state_dict()}, assign=True)
        return block.requires_grad_(False)

    @contextlib.contextmanager
    def entering(self):
        """Make the model fit to be run up to its last block.

        Blocks pass on what they get, and what is called before them (the embedding) has its weights.
        """
        inside = {id(module) for module in self.blocks.modules()}
        brought = []

        def bring(name):
            def hook(module, args):
                for inner, parameter in module._parameters.items():
                    if parameter is not None and parameter.device.type == "meta":
                        brought.append((module, inner, parameter))
                        value = self._read(f"{name}.{inner}" if name else inner)
                        module.register_parameter(inner, nn.Parameter(value, requires_grad=False))

            return hook

        outside = [(name, m) for name, m in self.model.named_modules() if id(m) not in inside]
        handles = [module.register_forward_pre_hook(bring(name)) for name, module in outside]
        for block in self.blocks:
            block.forward = _pass_on
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for block in self.blocks:
                del block.forward
            for module, inner, parameter in brought:
                module.register_parameter(inner, parameter)


def _pass_on(*args, **kwargs):
    return args[0] if args else kwargs["hidden_states"]


@dataclass
class _State:
    """What is done: whole shards, and the number of blocks in them."""

    folder: Path
    settings: dict
    shards: ShardWriter
    blocks: int = 0
    zeros: int = 0  # zero-points that are 0
    other_bytes: int = 0
    seconds: float = 0.0
    layers: list[Layer] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path, settings: dict, resume: bool) -> "_State":
        """Begin anew, or take up what an interrupted run of the same settings left."""
        state = cls(folder, settings, ShardWriter(folder, settings["shard_bytes"]))
        if left := journal.take_up(folder, settings, resume):
            for name in ("blocks", "zeros", "other_bytes", "seconds"):
                setattr(state, name, left[name])
            state.shards.shards = left["shards"]
            state.layers = [Layer(**layer | {"shape": tuple(layer["shape"])}) for layer in left["layers"]]
        return state

    def add(self, name: str, block: nn.Module, scheme: Scheme) -> None:
        """Write a quantized block."""
        for inner, module in block.named_modules():
            if isinstance(module, QuantLinear):
                self.zeros += int_fields(module.quantized)[1]
                for part, tensor in pack(scheme, f"{name}.{inner}", module.quantized).items():
                    self.shards.add(f"{name}.{inner}.{part}", as_torch(tensor))
        for inner, tensor in block.state_dict().items():
            value = as_dtype(f"{name}.{inner}", tensor, self.settings["dtype"])
            self.other_bytes += value.nbytes
            self.shards.add(f"{name}.{inner}", value)
        self.shards.flush()
        self.blocks += 1

    def note(self, report: Report) -> None:
        """Write the journal."""
        layers = [asdict(layer) for layer in report.layers]
        done = {"blocks": self.blocks, "zeros": self.zeros, "other_bytes": self.other_bytes, "seconds": report.seconds}
        journal.note(self.folder, {"settings": self.settings, "shards": self.shards.shards, "layers": layers} | done)


class _OnDisk:
    """The activations between two blocks as files, one a batch; as `calibrate.InMemory`."""

    def __init__(self, folder: Path, block: int):
        self.folder, self.block = folder, block
        if block == 0:
            self._fresh(0)
        elif not self._files():
            raise BadFile(f"{self._place(block)} is missing; run without resume")

    def _place(self, block: int) -> Path:
        return self.folder / f"activations-{block:05}"

    def _fresh(self, block: int) -> Path:
        self.forget(block)
        self._place(block).mkdir()
        return self._place(block)

    def _files(self) -> list[Path]:
        return sorted(self._place(self.block).glob("*.npy"))

    def append(self, hidden: torch.Tensor) -> None:
        """Keep a batch of what enters the first block; a run that continues further on has no use for it."""
        if self.block == 0:
            np.save(self._place(0) / f"{len(self._files()):05}.npy", hidden.numpy())

    def replace(self, batches: Iterable[torch.Tensor]) -> None:
        """Write what enters the next block. The files of this one stay until `forget`."""
        place = self._fresh(self.block + 1)
        for number, hidden in enumerate(batches):
            np.save(place / f"{number:05}.npy", hidden.numpy())
        self.block += 1

    def __getitem__(self, part: slice) -> Iterator[torch.Tensor]:
        """Batches, in memory that is aligned as torch's always is: sums may depend on it."""
        for file in self._files()[part]:
            try:
                yield torch.from_numpy(np.load(file, allow_pickle=False)).clone()
            except (ValueError, EOFError) as problem:
                raise BadFile(f"{file} is broken ({problem}); run without resume") from problem

    def forget(self, block: int) -> None:
        """Remove the activations that entered a block."""
        shutil.rmtree(self._place(block), ignore_errors=True)
