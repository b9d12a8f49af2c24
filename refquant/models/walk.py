"""Find the decoder blocks of a causal LM, and the Linear layers in them, without a table of architectures."""

import contextlib

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from refquant.errors import BadInput


def blocks(model: nn.Module) -> nn.ModuleList:
    """Return the decoder blocks: the `ModuleList` that holds most of the model's parameters."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        raise BadInput(f"{type(model).__name__} has no list of decoder blocks")
    return max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))


def linears(block: nn.Module) -> dict[str, nn.Module]:
    """Linear layers of a block by name: `nn.Linear`, and GPT-2's `Conv1D`, which is one stored transposed."""
    found = {name: m for name, m in block.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    if not found:
        raise BadInput(f"{type(block).__name__} holds no Linear layer (already quantized?)")
    return found


def weight(layer: nn.Module) -> torch.Tensor:
    """Weight as [out, in], a view that shares memory with the layer."""
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


def weight_array(layer: nn.Module) -> np.ndarray:
    """Weight as a float32 NumPy array [out, in]."""
    return weight(layer).detach().float().cpu().numpy()


def set_weight(layer: nn.Module, w: np.ndarray) -> None:
    """Overwrite the weight, in place, from an array [out, in]."""
    with torch.no_grad():
        weight(layer).copy_(torch.from_numpy(np.ascontiguousarray(w)))


def replace(block: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` in the place of the submodule `name` (dotted) of `block`."""
    parent, _, attribute = name.rpartition(".")
    setattr(block.get_submodule(parent) if parent else block, attribute, layer)


class _EmptyOnMeta(TorchFunctionMode):
    """`torch.empty`, from which layers make their weights, gives tensors without memory."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}) | ({"device": "meta"} if function is torch.empty else {}))


@contextlib.contextmanager
def without_parameters():
    """Modules made in here get parameters without memory or values; buffers (rotary frequencies) are computed.

    Freeing what a layer allocated would not do: between large blocks that come and go the heap falls into pieces.
    """
    register = nn.Module.register_parameter

    def register_empty(module, name, parameter):
        empty = None if parameter is None else nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, empty)

    nn.Module.register_parameter = register_empty
    try:
        with _EmptyOnMeta():
            yield
    finally:
        nn.Module.register_parameter = register
