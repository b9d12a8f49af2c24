"""AWQ on a block: find scales at the output of attention and MLP, and move them into the layers before.

A Linear layer may have its input columns multiplied by s when whatever produces its input is divided by s. That
producer is a norm (its weight, and bias, divided) or another Linear layer (its output rows divided) with nothing but
element-wise products in between::

    input norm       ->  q, k, v           compared at the output of attention
    v                ->  o                 at o's own output; only where each head has its own v (no grouped queries)
    MLP norm         ->  gate, up          at the output of the MLP
    up               ->  down              at down's own output; gated MLPs only (a GELU in between would not commute)

Supported: the layouts of Llama, Mistral, Qwen2, Qwen3, Gemma 1 to 3 (their norms multiply by 1 + w), Phi-3 (fused qkv
and gate_up), GPT-2 (LayerNorm with bias, transposed fused layers). Every absorption is checked: if the block's output
moves, `BadInput` is raised instead of a wrong model returned.

Source: AWQ (arXiv 2306.00978) section 3.2; which modules are inspected follows llm-awq's auto_scale.py.
Leaves out: mixture-of-experts layers; v -> o under grouped queries (llm-awq skips it too).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from refquant.errors import BadInput
from refquant.methods import awq
from refquant.methods.registry import LayerInputs
from refquant.models import walk
from refquant.models.calibrate import Stream

PARTS = {
    "v_proj": 1,
    "qkv_proj": 3,
    "c_attn": 3,
    "up_proj": 1,
    "gate_up_proj": 2,
}  # of equal size, where v, up is whole
SEARCH_TOKENS = 1024  # at most; on them candidate scales are compared, the channel means use all tokens
CLIP_TOKENS = 2048  # at most; on them clipped ranges are compared


@dataclass(frozen=True)
class ScaleGroup:
    """Layers that share an input, the module that makes it, and the module whose output is to stay the same.

    Of a Linear source, the output rows from `first_row` on feed the layers (a fused layer holds others before them).
    """

    source: str
    layers: tuple[str, ...]
    inspected: str
    first_row: int = 0


def scale_groups(block: nn.Module) -> list[ScaleGroup]:
    """List the absorptions that a decoder block allows; raise `BadInput` for a layout that is not known."""
    names = dict(block.named_modules())

    def first(*candidates):
        return next((name for name in candidates if name in names), None)

    def present(*candidates):
        return tuple(name for name in candidates if name in names)

    attention, mlp = first("self_attn", "attn"), first("mlp")
    norm = first("input_layernorm", "ln_1")
    mlp_norm = first("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2")
    qkv = present(*(f"{attention}.{n}" for n in ("q_proj", "k_proj", "v_proj"))) or present(
        f"{attention}.qkv_proj", f"{attention}.c_attn"
    )
    up = present("mlp.gate_proj", "mlp.up_proj") or present("mlp.gate_up_proj", "mlp.c_fc")
    out, down = first(f"{attention}.o_proj", f"{attention}.c_proj"), first("mlp.down_proj")
    if not (attention and mlp and norm and mlp_norm and len(qkv) in (1, 3) and len(up) in (1, 2) and out):
        raise BadInput(
            f"AWQ does not know the layout of {type(block).__name__}; known: Llama, Mistral, Qwen2, Qwen3, Gemma, "
            "Phi-3, GPT-2"
        )
    groups = [ScaleGroup(norm, qkv, attention), ScaleGroup(mlp_norm, up, mlp)]
    for layer, source in ((out, qkv[-1]), (down, up[-1])):
        if layer is None:  # GPT-2's MLP: a GELU stands between the two layers
            continue
        width = walk.weight(names[layer]).shape[1]
        rows = walk.weight(names[source]).shape[0]
        if rows == PARTS[source.rpartition(".")[2]] * width:  # v, or up, is the last part of a fused layer
            groups.append(ScaleGroup(source, (layer,), layer, rows - width))
    return groups


def absorb(block: nn.Module, group: ScaleGroup, s: np.ndarray) -> None:
    """Multiply the layers' input columns by `s` [k] and divide their source by it, in place."""
    modules = dict(block.named_modules())
    source = modules[group.source]
    with torch.no_grad():
        scale = torch.from_numpy(s).to(source.weight)
        for name in group.layers:
            walk.weight(modules[name]).mul_(scale)
        if group.source in walk.linears(block):
            walk.weight(source)[group.first_row :].div_(scale[:, None])
        elif "Gemma" in type(source).__name__:
            source.weight.copy_((1 + source.weight) / scale - 1)
        else:
            source.weight.div_(scale)
        if getattr(source, "bias", None) is not None:
            source.bias[group.first_row :].div_(scale)


def prepare_awq(
    block: nn.Module,
    index: int,
    stream: Stream,
    inputs: dict[str, LayerInputs],
    grid,
    clip: bool = True,
    backend: str = "numpy",
    **options,
) -> dict[str, LayerInputs]:
    """Search the scales of a block's groups, absorb them, clip; return the inputs as the layers now see them.

    `clip=False` leaves the ranges alone; `backend` is that of search and clip; `options` go to `awq.search`.
    """
    groups = scale_groups(block)
    calls, before = _calls(block, index, stream, {group.inspected for group in groups})
    found = {}
    for group in groups:
        layers = [block.get_submodule(name) for name in group.layers]
        ws = [walk.weight_array(layer) for layer in layers]
        known = inputs[group.layers[0]]
        forward = _forward(block, group, calls[group.inspected])
        found[group] = awq.search(
            ws,
            known.x[:SEARCH_TOKENS],
            grid,
            forward=forward,
            mean_abs=known.mean_abs,
            backend=backend,
            **options,
        ).scales
    for group, s in found.items():
        absorb(block, group, s)
        known = inputs[group.layers[0]]  # one object for all the layers of the group
        known.x, known.mean_abs = known.x / s, known.mean_abs / s
    _check_unchanged(block, before, next(iter(stream.run(block, index, 1))))
    if clip:
        for name, layer in walk.linears(block).items():
            if not name.endswith(("q_proj", "k_proj", "qkv_proj", "c_attn")):  # the product q kᵀ is too sensitive
                w = walk.weight_array(layer)
                limits = awq.clip(w, inputs[name].x, grid, tokens=CLIP_TOKENS, backend=backend)
                walk.set_weight(layer, awq.clamp(w, limits, grid))
    return inputs


PREPARE = {"awq": prepare_awq}


def _calls(block, index, stream, names) -> tuple[dict[str, list], torch.Tensor]:
    """Arguments with which the inspected modules are called while the block runs on one batch, and its output."""
    calls: dict[str, list] = {name: [] for name in names}

    def record(name):
        return lambda module, args, kwargs: calls[name].append((args, kwargs))

    handles = [block.get_submodule(n).register_forward_pre_hook(record(n), with_kwargs=True) for n in names]
    (output,) = stream.run(block, index, 1)
    for handle in handles:
        handle.remove()
    return calls, output


def _forward(block, group, calls):
    """Return a function: weights of the group's layers -> output of the inspected module, [tokens, features]."""
    module = block.get_submodule(group.inspected)
    layers = [block.get_submodule(name) for name in group.layers]

    def forward(candidates):
        originals = [walk.weight(layer).clone() for layer in layers]
        try:
            for layer, w in zip(layers, candidates, strict=True):
                walk.set_weight(layer, w)
            outputs = []
            for args, kwargs in calls:
                with torch.no_grad():
                    out = module(*args, **kwargs)
                outputs.append((out[0] if isinstance(out, tuple) else out).flatten(0, -2))
            return torch.cat(outputs)[:SEARCH_TOKENS].float().cpu().numpy()
        finally:
            with torch.no_grad():
                for layer, original in zip(layers, originals, strict=True):
                    walk.weight(layer).copy_(original)

    return forward


def _check_unchanged(block, before, after):
    moved = (after - before).abs().max() / before.abs().max()
    if not moved < 1e-3:
        raise BadInput(
            f"AWQ: absorbing the scales changed the output of {type(block).__name__} by {moved:.2g} of its largest "
            "value; this layout is not the one it looks like"
        )
