"""One quantized model on two backends: its first blocks on one (a GPU), everything else on another (the CPU).

A card that is too small for a model holds some of its blocks; the rest stays in main memory and is computed there, from
the same quantized arrays. Only the hidden states cross, twice a token::

    embedding (far)  ->  block 0 ... first - 1 (near)  ->  block first ... last, norm, output matrix (far)

Each block keeps its KV cache on its own side. `refquant plan` predicts the time (`bandwidth.split`), `refquant bench
split` lays a measurement beside a prediction.

Against other code: llama.cpp's -ngl puts the output matrix and the last blocks on the card; Accelerate moves weights to
the card when a block runs, so what does not fit is read over the bus for every token.
Leaves out: choosing `first` (the planner does); more than one card; overlapping the two sides, which decode cannot: a
token's blocks are in series.
"""

from weakref import WeakKeyDictionary

import torch
from torch import nn

from refquant.errors import BackendUnavailable, BadInput
from refquant.models import walk
from refquant.models.linear import QuantLinear

_HOOKS: WeakKeyDictionary[nn.Module, list] = WeakKeyDictionary()  # of the models that were placed


def place(model: nn.Module, first: int, near: str = "cuda", far: str = "numba") -> nn.Module:
    """Run the first `first` blocks on the backend `near` and everything else on `far`, in place; return the model.

    A model that was placed before is placed anew.

    Parameters
    ----------
    model : causal LM
        In main memory; quantized by `models.quantize` or loaded from a quantized checkpoint.
    first : int
        0 to the number of blocks.
    near, far : str
        Backends of `QuantLinear`. "cuda" keeps a block's norms, cache and activations on the GPU as well.

    Raises
    ------
    BadInput
        There are fewer blocks, or a block holds no quantized layer.
    BackendUnavailable
        "cuda" without a GPU.
    """
    blocks = walk.blocks(model)
    if not 0 <= first <= len(blocks):
        raise BadInput(f"cannot place {first} blocks apart: the model has {len(blocks)}")
    layers = [[m for m in block.modules() if isinstance(m, QuantLinear)] for block in blocks]
    if not all(layers):
        raise BadInput("a split runs from quantized layers: quantize the model first (models.quantize)")
    if "cuda" in (near, far) and not torch.cuda.is_available():
        raise BackendUnavailable("backend 'cuda' needs an NVIDIA GPU that torch can use; torch sees none here")
    for handle in _HOOKS.pop(model, []):
        handle.remove()
    hooks = _HOOKS.setdefault(model, [])
    for index, block in enumerate(blocks):
        backend = near if index < first else far
        device = "cuda" if backend == "cuda" else "cpu"
        block.to(device)
        for layer in layers[index]:
            layer.backend = backend

        def bring(_, args, kwargs, device=device):
            return _move((args, kwargs), device)

        hooks.append(block.register_forward_pre_hook(bring, with_kwargs=True))
    # The norm and the output matrix are in main memory.
    hooks.append(blocks[-1].register_forward_hook(lambda _, args, out: _move(out, "cpu")))
    return model


def _move(value, device: str):
    """Move the tensors in nested tuples, lists and dicts to a device; leave anything else (caches) as it is."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if type(value) in (tuple, list):
        return type(value)(_move(item, device) for item in value)
    return {name: _move(item, device) for name, item in value.items()} if type(value) is dict else value
