"""Quantize a running model as llama.cpp would for a GGUF file: each tensor in the type that a mix gives it."""

import time

import torch
from torch import nn
from tqdm import tqdm

from refquant import ops
from refquant.grids import check_weights
from refquant.importance import ImportanceMatrix
from refquant.methods import mixes
from refquant.models import walk
from refquant.models.gguf import architectures
from refquant.models.linear import QuantLinear
from refquant.models.report import Layer, Report


def plan(model, mix: str, importance: bool = False, pure: bool = False) -> mixes.Plan:
    """Return the type of every tensor of `model` under a mix; nothing is computed yet.

    Raises
    ------
    BadInput
        An architecture that GGUF export does not know.
    UnknownName
        No such mix.
    """
    item = architectures.of_config(model.config.to_dict())
    config = architectures.with_head_width(model.config.to_dict())
    tied = config.get("tie_word_embeddings")
    shapes = {
        architectures.gguf_name(name, item): tuple(parameter.shape)
        for name, parameter in model.state_dict().items()
        if not (name == "lm_head.weight" and tied)
    }
    described = mixes.describe(architectures.config_to_metadata(config))
    return mixes.plan(shapes, mix, described, importance=importance, pure=pure)


def quantize_mix(
    model,
    mix: str = "Q4_K_M",
    importance: ImportanceMatrix | None = None,
    pure: bool = False,
    progress: bool = False,
    backend: str = "dense",
) -> Report:
    """Quantize in place every matrix of `model`, the embedding and the output layer included.

    The embedding (and an output layer tied to it) is replaced by its dequantized values, as a lookup needs floats.
    The bytes of each matrix are those of the GGUF file that `models.gguf.export` writes, up to the order of rows.

    Parameters
    ----------
    mix : str
        Such as "Q4_K_M"; or a block format, for every matrix.
    importance : ImportanceMatrix, optional
        By GGUF names.
    pure, progress, backend
        As in `mixes.plan` and `models.quantize`.
    """
    began = time.perf_counter()
    chosen = plan(model, mix, importance is not None, pure)
    item = architectures.of_config(model.config.to_dict())
    report = Report("gguf", mix)
    matrices = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
        and architectures.gguf_name(f"{name}.weight", item) in chosen.types
    }
    for name, module in matrices.items():  # before anything is changed
        check_weights(walk.weight_array(module), name)
    quantized = set()
    for name, module in tqdm(matrices.items(), desc=mix, unit="tensor", disable=not progress, leave=False):
        key = architectures.gguf_name(f"{name}.weight", item)
        if chosen.types[key] == "F32":
            continue
        means = importance.means(key, module.weight.shape[1]) if importance is not None else None
        q = ops.quantize(walk.weight_array(module), chosen.types[key], None if means is None else means[0])
        if isinstance(module, nn.Embedding):
            with torch.no_grad():
                module.weight.copy_(torch.from_numpy(ops.dequantize(q)))
        else:
            walk.replace(model, name, QuantLinear(q, module.bias, backend))
        quantized.add(key)
        report.layers.append(Layer(name, q.format, q.shape, q.nbytes, None))
    report.other_bytes = sum(choice.nbytes for choice in chosen.choices if choice.name not in quantized)
    report.fallbacks = len(chosen.fallbacks)
    report.seconds = time.perf_counter() - began
    return report
