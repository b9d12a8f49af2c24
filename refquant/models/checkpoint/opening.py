"""A checkpoint folder -> a running model, whose quantized layers stay quantized or are decoded."""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from refquant import ops
from refquant.errors import BadFile, RefquantError
from refquant.models import walk
from refquant.models.checkpoint.extras import has_tokenizer
from refquant.models.checkpoint.folder import Folder
from refquant.models.checkpoint.schemes import Scheme, quantized_modules, read_scheme
from refquant.quantized import Quantized


def load(path, layer: Callable | None = None):
    """Build a running transformers model and its tokenizer from a folder of quantized weights.

    Parameters
    ----------
    path : folder
    layer : function (Quantized, bias) -> torch module, optional
        Makes the module that takes the place of each quantized Linear layer, such as `refquant.models.QuantLinear`.
        Without it the weights are decoded, float32.

    Returns
    -------
    model, tokenizer
        The model in float32 on the CPU, in evaluation mode; the tokenizer is None where the folder has none.

    Raises
    ------
    BadFile
        The folder is broken, declares something that is not read, or does not fit its own config; the message names
        the file and the tensor.
    """
    path = Path(path)
    logging.disable_progress_bar()
    with Folder(path) as folder:
        if folder.quantization is None:
            raise BadFile(f"{path / 'config.json'} has no quantization_config")
        scheme = read_scheme(folder.quantization)
        modules = quantized_modules(scheme, folder.tensors)
        if not modules:
            raise BadFile(f"{path} declares {scheme.method}, but holds no tensor of it")
        kept = {name: read_quantized(folder, scheme, name) for name in modules}
        taken = {full for name in modules for full in folder.layer(name).values()}
        biases = {f"{name}.bias": None for name in modules if f"{name}.bias" in folder.tensors}
        dense = {name: folder.tensor(name) for name in folder.tensors if name not in taken | biases.keys()}
        biases = {name: folder.tensor(name).float() for name in biases}
        layers = {name: _layer(q, biases.get(f"{name}.bias"), layer) for name, q in kept.items()}
        model = _build(path, layers, dense)
    model.name_or_path = str(path)
    return model.eval(), read_tokenizer(path)


def read_quantized(folder: Folder, scheme: Scheme, name: str) -> Quantized:
    """Return the layer `name`; `BadFile` says which it is."""
    layout = scheme.layout_of(name)
    if layout is None:
        raise BadFile(f"{folder.path}: {name} is quantized, though the config says it is left alone")
    try:
        return layout.read(folder.read_layer(name))
    except RefquantError as problem:
        raise BadFile(f"{folder.path}: {name}: {problem}") from problem


def read_config(path: Path):
    """Return the config of transformers, without the quantization; it runs no code of the folder."""
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise BadFile(f"{path / 'config.json'}: {_first_line(problem)}") from problem
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    return config


def read_tokenizer(path: Path):
    """Return the tokenizer of a folder, None where it has none."""
    if not has_tokenizer(path):
        return None
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise BadFile(f"{path}: no tokenizer that transformers can load: {_first_line(problem)}") from problem


def empty_model(config) -> nn.Module:
    """Return the model of a config, without memory for its weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _first_line(problem: Exception) -> str:
    return str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__


def _layer(q: Quantized, bias: torch.Tensor | None, layer: Callable | None) -> nn.Module:
    if layer:
        return layer(q, bias)
    plain = nn.Linear(q.shape[1], q.shape[0], bias=bias is not None, device="meta")
    plain.weight = nn.Parameter(torch.from_numpy(ops.dequantize(q)), requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias, requires_grad=False)
    return plain


def _build(path: Path, layers: dict[str, nn.Module], dense: dict[str, torch.Tensor]) -> nn.Module:
    """Build the model with `layers` in their places from the start, so that no memory is taken for what they replace.

    transformers then fills in the rest: it knows tied weights, buffers that no file holds, and renamed parameters.
    """
    config = read_config(path)
    plain = type(empty_model(config))

    def init(self, config, *args, **options):
        plain.__init__(self, config, *args, **options)
        for name, layer in layers.items():
            _put(path, self, name, layer)

    adapted = type(plain.__name__, (plain,), {"__init__": init})
    own = {f"{name}.{inner}": value for name, layer in layers.items() for inner, value in layer.state_dict().items()}
    try:
        model, report = adapted.from_pretrained(
            None, config=config, state_dict=dense | own, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as problem:
        if isinstance(problem, RefquantError):
            raise
        raise BadFile(f"{path}: {_first_line(problem)}") from problem
    missing = sorted(name for name in report["missing_keys"] if not re.search(r"rotary_emb\.inv_freq$", name))
    if missing:
        raise BadFile(f"{path}: {len(missing)} tensors are missing, such as {missing[0]}")
    model.__class__ = plain
    return model


def _put(path: Path, model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer where the model has a Linear one of its shape."""
    try:
        there = model.get_submodule(name)
    except AttributeError:
        raise BadFile(f"{path}: {name} is quantized, but {type(model).__name__} has no such layer") from None
    if not isinstance(there, nn.Linear | Conv1D):
        raise BadFile(f"{path}: {name} is quantized, but it is a {type(there).__name__}, not a Linear layer")
    shape, found = tuple(walk.weight(there).shape), (layer.out_features, layer.in_features)
    if shape != found:
        raise BadFile(f"{path}: {name} has the shape {list(found)} (out, in), the config asks for {list(shape)}")
    walk.replace(model, name, layer)
