"""`absorb` of the reference: the case's tensors as modules of a block, for `models.absorb`, which works on those."""

import numpy as np
import torch
from torch import nn

from refquant.models.absorb import ScaleGroup
from refquant.models.absorb import absorb as absorb_scale

# kind: the tensors of the source (weight, bias), the layers that read it, the first row that feeds them
PARTS = {
    "rmsnorm": ("norm", None, ("w0", "w1")),
    "gemma-norm": ("norm", None, ("w0", "w1")),
    "layernorm": ("norm", "norm_bias", ("w0",)),
    "linear": ("up", "up_bias", ("down",)),
    "fused-qkv": ("qkv", "qkv_bias", ("o",)),
}


class GemmaNorm(nn.Module):
    """A norm that multiplies by 1 + weight; it is known by its name."""


def absorb(tensors: dict[str, np.ndarray], scales: np.ndarray, kind: str) -> dict[str, np.ndarray]:
    """Return the tensors with `scales` absorbed; models with grouped queries leave v and o alone in refquant."""
    if kind not in PARTS:
        raise NotImplementedError(f"refquant does not absorb a scale under {kind}")
    source, bias, layers = PARTS[kind]
    block = nn.Module()
    for name in (source, *layers):
        weight = torch.from_numpy(tensors[name].copy())
        module = GemmaNorm() if kind == "gemma-norm" and name == source else nn.Module()
        if weight.ndim == 2:
            module = nn.Linear(weight.shape[1], weight.shape[0], bias=name == source)
        module.weight = nn.Parameter(weight)
        if name == source and bias:
            module.bias = nn.Parameter(torch.from_numpy(tensors[bias].copy()))
        setattr(block, name, module)
    first = len(tensors[source]) - len(scales) if source == "qkv" else 0
    absorb_scale(block, ScaleGroup(source, layers, layers[0], first), scales)
    changed = {name: getattr(block, name).weight.detach().numpy() for name in (source, *layers)}
    if bias:
        changed[bias] = getattr(block, source).bias.detach().numpy()
    return tensors | changed
