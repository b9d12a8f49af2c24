"""Look a checkpoint folder over: what it holds, and everything in it that does not fit its own config."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn
from transformers.pytorch_utils import Conv1D

from refquant.errors import BadFile, RefquantError
from refquant.formats.checkpoint_layout import GridLayout, Layout
from refquant.formats.file_tensor import FileTensor
from refquant.formats.gptq import GPTQ, load_zeros
from refquant.models import walk
from refquant.models.checkpoint.folder import Folder
from refquant.models.checkpoint.opening import empty_model, read_config
from refquant.models.checkpoint.schemes import Scheme, quantized_modules, read_scheme


@dataclass
class Inspection:
    """What `inspect` found. `problems` break a loader, or make two loaders differ; `remarks` are worth knowing."""

    path: str
    method: str | None = None
    layers: list[dict] = field(default_factory=list)  # name, format, shape, nbytes
    other_bytes: int = 0
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def bits_per_weight(self) -> float:
        """Bits per quantized weight, with everything that is stored for it."""
        weights = sum(layer["shape"][0] * layer["shape"][1] for layer in self.layers)
        return 8 * sum(layer["nbytes"] for layer in self.layers) / weights if weights else 0.0


def inspect(path) -> Inspection:
    """Check every tensor of a checkpoint folder against its config; reads all of it, one layer at a time.

    Looked at: names, types and shapes against the declared format; g_idx in range, and how many columns each group has;
    zero-points as the declared version stores them; scales that are finite; layers missing or left over against the
    model that config.json describes.

    Raises
    ------
    BadFile
        The folder cannot be read at all: no config, a shard missing, a hostile header, pickled weights, a format that
        is not known.
    """
    path = Path(path)
    found = Inspection(str(path))
    with Folder(path) as folder:
        expected, shapes = _model(path, found)
        taken = set()
        if folder.quantization is not None:
            scheme = read_scheme(folder.quantization)
            found.method = scheme.method
            for module in quantized_modules(scheme, folder.tensors):
                taken |= set(folder.layer(module).values())
                _layer(found, folder, scheme, module, shapes)
            _unquantized(found, scheme, shapes)
        rest = [name for name in folder.tensors if name not in taken]
        found.other_bytes = sum(folder.tensor(name).nbytes for name in rest)
        if expected is not None:
            _names(found, expected, rest, {layer["name"] for layer in found.layers})
    return found


def _model(path: Path, found: Inspection) -> tuple[dict | None, dict[str, tuple[int, int]]]:
    """Return the parameters' shapes and the Linear layers' (out, in) of the model, if transformers knows it."""
    try:
        model = empty_model(read_config(path))
    except (BadFile, ValueError, KeyError) as problem:
        found.remarks.append(f"not compared with the model: {problem}")
        return None, {}
    shapes = {
        name: tuple(walk.weight(m).shape) for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)
    }
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
    return {name: (tuple(p.shape), name in tied) for name, p in model.state_dict().items()}, shapes


def _layer(found: Inspection, folder: Folder, scheme: Scheme, module: str, shapes: dict) -> None:
    """Check one layer and note what it is."""
    layout = scheme.layout_of(module)
    if layout is None:
        found.problems.append(f"{module}: quantized, though the config says it is left alone")
        return
    if shapes and module not in shapes:
        found.problems.append(f"{module}: quantized, but the model has no such Linear layer")
    try:
        tensors = folder.read_layer(module)
        if wrong := layout.problems(tensors, shapes.get(module)):
            found.problems += [f"{module}: {problem}" for problem in wrong]
            return
        q = layout.read(tensors)
    except RefquantError as problem:
        found.problems.append(f"{module}: {problem}")
        return
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    found.layers.append({"name": module, "format": q.format, "shape": list(q.shape), "nbytes": nbytes})
    found.problems += [f"{module}: {problem}" for problem in _groups(layout, tensors, q.shape)]
    found.remarks += [f"{module}: {remark}" for remark in _zeros(layout, tensors, q.shape)]


def _groups(layout: Layout, tensors: dict[str, FileTensor], shape: tuple[int, int]) -> list[str]:
    """Groups that do not have the columns that the group size gives them."""
    g_idx = tensors.get("g_idx", tensors.get("weight_g_idx"))
    if g_idx is None or not isinstance(layout, GridLayout):
        return []
    want = Counter(layout.grid.group_index(shape[1]).tolist())
    have = Counter(g_idx.array.tolist())
    wrong = [group for group in want if have[group] != want[group]]
    if not wrong:
        return []
    group = wrong[0]
    return [f"g_idx gives {have[group]} columns to group {group}, whose size is {want[group]}"]


def _zeros(layout: Layout, tensors: dict[str, FileTensor], shape: tuple[int, int]) -> list[str]:
    """What version 1 of GPTQ cannot say unambiguously."""
    if not isinstance(layout, GPTQ) or layout.version != 1:
        return []
    zeros = load_zeros(tensors["qzeros"].array, layout.bits, 1, shape[0])
    count = int(np.count_nonzero(zeros == 0))
    if not count:
        return []
    return [f"{count} zero-points are 0; version 1 has no agreed way to store them, and readers differ"]


def _unquantized(found: Inspection, scheme: Scheme, shapes: dict) -> None:
    """Linear layers that the config declares quantized and the file does not."""
    have = {layer["name"] for layer in found.layers} | {problem.split(":")[0] for problem in found.problems}
    output = {name for name in shapes if "." not in name}  # lm_head, embed_out: formats leave it alone by custom
    for name in shapes.keys() - have - output:
        if scheme.layout_of(name) is not None:
            found.problems.append(f"{name}: not quantized, though the config says so")


def _names(found: Inspection, expected: dict, rest: list[str], layers: set[str]) -> None:
    """Tensors missing or left over against the model."""
    here = set(rest)
    for name, (_, tied) in expected.items():
        if name not in here and name.rpartition(".")[0] not in layers and not tied:
            already = any(problem.startswith(f"{name.rpartition('.')[0]}: ") for problem in found.problems)
            if not already:
                found.problems.append(f"{name} is missing")
    found.problems += [f"{name} is left over: the model has no such tensor" for name in rest if name not in expected]
