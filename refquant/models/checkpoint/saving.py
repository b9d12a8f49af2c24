"""A running model -> a checkpoint folder in the format of a serving engine."""

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from refquant import ops
from refquant.errors import BadInput, RefquantError
from refquant.models import walk
from refquant.models.checkpoint import extras
from refquant.models.checkpoint.schemes import FORMATS, Scheme, choose
from refquant.models.checkpoint.writer import SHARD_BYTES, ShardWriter, as_torch, replacing_folder
from refquant.models.linear import QuantLinear
from refquant.quantized import Quantized, find_format

__all__ = ["FORMATS", "check", "check_model", "save"]
DTYPES = ("float16", "bfloat16", "float32")


def save(
    model: nn.Module,
    folder,
    format: str = "gptq",  # noqa: A002 (a public name)
    tokenizer=None,
    dtype: str = "float16",
    command: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model with `QuantLinear` layers as a folder that serving engines load; whole, or not at all.

    Parameters
    ----------
    model : causal LM
        Some of its Linear layers are `QuantLinear`; they are written as they are, nothing is rounded again.
    folder : path
        Of a new folder, or of a model's folder that is to be replaced.
    format : str
        "gptq" (version 1), "gptq_v2", "awq", "compressed-tensors", "fp8" (128 by 128 blocks) or "bitsandbytes".
    tokenizer : optional
        Saved beside the model. Without it, the tokenizer files of the folder that the model was loaded from.
    dtype : str
        Of the tensors that are not quantized: "float16", "bfloat16" or "float32".
    command : str, optional
        What the README says the folder was made with; by default this program's command line.
    shard_bytes : int
        Largest size of one file; also the memory that writing takes.

    Raises
    ------
    UnknownName
        No such format.
    BadInput
        No quantized layer, or something that the format cannot hold (the message names the layer and the reason);
        `folder` is there and is not the folder of a model.

    Notes
    -----
    Against other code: GPTQModel writes non-quantized tensors in the model's own type, AutoAWQ in float16.
    Leaves out: models larger than memory (see `stream`), and tied weights that are tied in no other way than by memory.
    """
    layers = {name: m.quantized for name, m in model.named_modules() if isinstance(m, QuantLinear)}
    others = tuple(name for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D))
    unpacked = {name: int_fields(q) for name, q in layers.items()}
    act_order = any(mapped for mapped, _ in unpacked.values())
    scheme = choose(format, {name: q.format for name, q in layers.items()}, act_order, others, dtype)
    floats = _float_tensors(model, dtype)  # refused before anything is written
    with replacing_folder(folder) as partial:
        shards = ShardWriter(partial, shard_bytes)
        for name, q in layers.items():
            for inner, tensor in pack(scheme, name, q).items():
                shards.add(f"{name}.{inner}", as_torch(tensor))
        for name, tensor in floats.items():
            shards.add(name, tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor)
        shards.finish()
        extras.write_config(partial, _config(model), scheme, dtype)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(partial)
        if model.name_or_path and Path(model.name_or_path).is_dir():
            extras.copy_files(Path(model.name_or_path), partial)
        zeros = sum(count for _, count in unpacked.values())
        command = command or " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        extras.write_readme(partial, Path(folder).name, scheme, command, extras.notes(scheme, zeros))


def check(
    format: str,  # noqa: A002
    grid: str,
    shapes: Mapping[str, tuple[int, int]],
    others: tuple[str, ...],
    dtype: str,
    act_order: bool = False,
) -> Scheme:
    """Return the scheme in which layers of these shapes (out, in) will be written; `BadInput` if they cannot be.

    Before any work: a layer of zeros of each shape is packed. `act_order`: whether columns are mapped to groups;
    `others` are the Linear layers that stay as they are.
    """
    if dtype not in DTYPES:
        raise BadInput(f"dtype must be float16, bfloat16 or float32, got {dtype!r}")
    find_format(grid)
    blanks: dict[tuple[int, int], tuple[str, Quantized]] = {}
    for name, (rows, columns) in shapes.items():
        few = rows if rows < 512 else 256 + rows % 256  # no layout looks further than 128 rows
        if (few, columns) not in blanks:
            try:
                blanks[few, columns] = name, _blank(grid, (few, columns), act_order)
            except RefquantError as problem:
                raise BadInput(f"{name}: {problem}") from problem
    mapped = any("g_idx" in q.arrays for _, q in blanks.values())
    scheme = choose(format, dict.fromkeys(shapes, grid), mapped, others, dtype)
    for name, q in blanks.values():
        pack(scheme, name, q)
    return scheme


def check_model(model: nn.Module, format: str, grid: str, dtype: str, **options) -> Scheme:  # noqa: A002
    """`check` for a model that is about to be quantized, with the options of the method."""
    shapes, names = {}, {id(module): name for name, module in model.named_modules()}
    for block in walk.blocks(model):
        for inner, layer in walk.linears(block).items():
            shapes[f"{names[id(block)]}.{inner}"] = tuple(walk.weight(layer).shape)
    linears = (name for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D))
    others = tuple(name for name in linears if name not in shapes)
    mapped = bool(options.get("act_order")) and not options.get("static_groups")
    return check(format, grid, shapes, others, dtype, mapped)


def _blank(grid: str, shape: tuple[int, int], act_order: bool) -> Quantized:
    """A layer of zeros, its columns mapped to groups in another order where `act_order` says so."""
    q = ops.quantize(np.zeros(shape, np.float32), grid)
    if not act_order or find_format(grid).family != "int":
        return q
    fields = ops.unpack(q)
    return ops.pack(fields | {"g_idx": np.roll(fields["g_idx"], 1)}, grid, shape)


def pack(scheme: Scheme, name: str, q) -> dict:
    """Return the tensors of a layer in the scheme's layout; `BadInput` says which layer it is."""
    try:
        return scheme.layout_of(name).write(q)
    except RefquantError as problem:
        raise BadInput(f"{name}: {problem}") from problem


def int_fields(q) -> tuple[bool, int]:
    """Whether the layer maps columns to groups, and how many of its zero-points are 0."""
    if find_format(q.format).family != "int":
        return False, 0
    fields = ops.unpack(q) if "zeros" in q.arrays else {"zeros": q.arrays["scales"] + 1}
    return "g_idx" in q.arrays, int((fields["zeros"] == 0).sum())


def _float_tensors(model: nn.Module, dtype: str) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers that are not quantized, each memory once; `BadInput` for what overflows."""
    if dtype not in DTYPES:
        raise BadInput(f"dtype must be float16, bfloat16 or float32, got {dtype!r}")
    limit, found, seen = torch.finfo(getattr(torch, dtype)).max, {}, set()
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if place in seen and tensor.numel():
            continue
        seen.add(place)
        if tensor.is_floating_point() and tensor.numel() and not (tensor.abs().max() <= limit):  # NaN is not <=
            raise BadInput(f"{name} holds NaN, infinity or values beyond {dtype}'s {limit:g}; try another dtype")
        found[name] = tensor.detach()
    return found


def _config(model: nn.Module) -> dict:
    """Config of the model as transformers writes it."""
    config = model.config.to_dict()
    config.pop("_name_or_path", None)
    config.pop("quantization_config", None)
    return config | {"architectures": [type(model).__name__]}
