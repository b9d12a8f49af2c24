"""Quantize the Linear layers of a model, block by block; each layer is calibrated on what is quantized before it."""

import time

import numpy as np
from tqdm import tqdm

from refquant.errors import BadInput
from refquant.evaluate.layer import layer_error
from refquant.grids import as_grid, check_weights
from refquant.methods.registry import find_method
from refquant.models import absorb, dispatch, walk
from refquant.models.calibrate import Stream
from refquant.models.linear import QuantLinear
from refquant.models.mix import quantize_mix
from refquant.models.report import Layer, Report
from refquant.ops import dequantize


def quantize(
    model,
    method: str = "gptq",
    grid="int4-g128",
    calibration: np.ndarray | None = None,
    progress: bool = False,
    backend: str = "dense",
    batch: int = 4,
    method_backend: str | None = None,
    true_sequential: bool = True,
    **options,
) -> Report:
    """Quantize every Linear layer of the decoder blocks in place; embedding, norms and the output layer stay.

    Parameters
    ----------
    model : causal LM
        Changed: its Linear layers become `QuantLinear`. One that Accelerate has spread over devices, memory and disk
        (`device_map`) is brought back block by block.
    method : str
        "rtn", "gptq", "awq", ...: see `refquant.methods.registry`. "gguf": the mix named by `grid`, see
        `models.mix.quantize_mix`, which takes the embedding and the output layer as well.
    grid : str or grid
        Such as "int4-g128"; for "gguf" a mix, such as "Q4_K_M".
    calibration : int [windows, context], optional
        Token ids; needed by the methods that look at activations.
    progress : bool
        Show a bar over the blocks.
    backend : str
        Of the `QuantLinear` layers.
    batch : int
        Calibration windows run at a time; for AWQ those of `absorb.SEARCH_TOKENS`, on which it compares candidates.
    method_backend : str, optional
        Of the method itself, where it has a fast path: "numba" for gptq and awq.
    true_sequential : bool
        Calibrate each layer on the layers before it already quantized, also those of its own block, as GPTQModel does
        by default: o sees what the quantized q, k and v make of the text. It takes the memory of one block's
        activations for all windows, and one run through a block where False takes two. False: on the block as it was,
        as the published GPTQ code by default. Not for AWQ, whose scales tie a block's layers together. The two differ
        little: KL divergence 0.128 and 0.128 nats at int4-g128, 0.549 instead of 0.595 at int3-g128 on SmolLM2-135M.
    options
        For the method, such as `act_order=True`.

    Raises
    ------
    BadInput
        No calibration where it is needed, or NaN in weights (found before anything is changed, but in offloaded
        weights; the message names the layer), or NaN in activations. These are met half way, when the blocks before
        are quantized already and keeping their old weights would take the memory of a second model: the model is then
        to be loaded anew.
    """
    entry = find_method(method)
    if method == "gguf":
        return quantize_mix(model, grid, progress=progress, backend=backend, **options)
    grid = as_grid(grid)
    if entry.needs and calibration is None:
        raise BadInput(f"{method} needs calibration tokens [windows, context]")
    if method_backend is not None:
        options["backend"] = method_backend
    began = time.perf_counter()
    report = Report(method, grid.name)
    model.requires_grad_(False)
    layers = walk.blocks(model)
    for index, block in enumerate(layers):  # before anything is changed
        for name, layer in walk.linears(block).items():
            if not dispatch.is_offloaded(layer):
                check_weights(walk.weight_array(layer), f"block {index} {name}")
    stream = Stream(model, *as_the_method_needs(entry, calibration, batch)) if entry.needs else None
    bar = tqdm(layers, desc=f"{method} {grid.name}", unit="block", disable=not progress, leave=False)
    for index, block in enumerate(bar):
        dispatch.settle(block)
        last = index + 1 == len(layers)
        quantize_block(block, index, entry, grid, stream, report, backend, None, last, true_sequential, **options)
        if hasattr(model, "hf_device_map"):  # spread because memory is short
            for module in block.modules():
                if isinstance(module, QuantLinear):
                    module.forget_dense()
    dispatch.settle_each(model)  # so that what is left can be saved
    biases = (m.bias for m in model.modules() if isinstance(m, QuantLinear) and m.bias is not None)
    report.other_bytes = 2 * sum(p.numel() for p in [*model.parameters(), *biases])
    report.seconds += time.perf_counter() - began
    return report


def as_the_method_needs(entry, calibration: np.ndarray, batch: int) -> tuple[np.ndarray, int]:
    """Return the calibration windows that the method has use for, and how many of them run at a time."""
    if np.ndim(calibration) != 2:
        return calibration, batch  # refused where it is read
    context = np.shape(calibration)[1]
    if entry.tokens is not None:
        calibration = calibration[: -(-entry.tokens // context)]
    return calibration, max(1, absorb.SEARCH_TOKENS // context) if entry.name in absorb.PREPARE else batch


def quantize_block(
    block, index, entry, grid, stream, report, backend, done, last, true_sequential=True, /, **options
) -> None:
    """Quantize the Linear layers of one block in place, note them in the report, take the activations through it.

    `stream` holds the block's inputs (None for a method that looks at weights only), and then those of the next block
    unless this is the `last`; `backend` is that of the `QuantLinear` layers, `options` are the method's; `done`, if not
    None, is called with each layer's weights' number.
    """
    quantized, layers, prepare = {}, walk.linears(block), absorb.PREPARE.get(entry.name)

    def visit(name, inputs):
        layer, run = layers[name], {} if prepare else options
        q, decoded = _quantize_layer(report, f"block {index} {name}", layer, entry, grid, inputs, run)
        quantized[name] = q
        if decoded is not None:
            walk.set_weight(layer, decoded)
        if done:
            done(q.shape[0] * q.shape[1])

    in_turn = stream and true_sequential and not prepare
    if in_turn:
        stream.in_turn(block, index, entry.needs, visit, last)
    else:
        inputs = stream.observe(block, index, entry.needs) if stream else {}
        _check_reached(index, layers, {name for name in layers if not stream or inputs[name].tokens})
        if prepare:
            inputs = prepare(block, index, stream, inputs, grid, **options)
        for name in layers:
            visit(name, inputs.pop(name, None))
    _check_reached(index, layers, quantized)
    for name, layer in layers.items():
        dense = walk.weight(layer).detach() if entry.needs else None  # decoded already
        walk.replace(block, name, QuantLinear(quantized[name], layer.bias, backend, dense))
    if stream and not (in_turn or last):
        stream.advance(block, index)


def _check_reached(index, layers, reached) -> None:
    if missed := sorted(layers.keys() - reached):
        raise BadInput(f"block {index}: no calibration token reached {', '.join(missed)}")


def _quantize_layer(report, name, layer, entry, grid, inputs, options):
    """Return the layer quantized and, where activations go on through it, decoded."""
    w = walk.weight_array(layer)
    try:
        q = entry.layer(w, grid, inputs, **options)
    except BadInput as problem:
        raise BadInput(f"{name}: {problem}") from problem
    decoded = dequantize(q, options.get("backend", "numpy")) if entry.needs else None
    error, began = None, time.perf_counter()
    if inputs is not None and inputs.hessian is not None:
        error = layer_error(w, decoded, inputs.hessian.H)
    report.seconds -= time.perf_counter() - began  # measuring is not quantizing
    report.layers.append(Layer(name, q.format, q.shape, q.nbytes, error))
    return q, decoded
