"""Quantize the Linear layers of a model, block by block; each block is calibrated on the blocks already quantized."""

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
        Calibration windows run at a time. AWQ takes one: on the first batch it compares its candidates.
    method_backend : str, optional
        Of the method itself, where it has a fast path: "numba" for gptq and awq.
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
        quantize_block(block, index, entry, grid, stream, report, backend, None, **options)
        if stream and index + 1 < len(layers):
            stream.advance(block, index)
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
    if entry.tokens is not None and np.ndim(calibration) == 2:
        calibration = calibration[: -(-entry.tokens // np.shape(calibration)[1])]
    return calibration, 1 if entry.name in absorb.PREPARE else batch


def quantize_block(block, index, entry, grid, stream, report, backend, done, /, **options) -> None:
    """Quantize the Linear layers of one block in place, and note them in the report.

    `stream` holds the block's inputs (None for a method that looks at weights only); `backend` is that of the
    `QuantLinear` layers, `options` are the method's; `done`, if not None, is called with each layer's weights' number.
    """
    inputs, prepare = {}, absorb.PREPARE.get(entry.name)
    if stream:
        inputs = stream.observe(block, index, entry.needs)
        if prepare:
            inputs = prepare(block, index, stream, inputs, grid, **options)
    for name, layer in walk.linears(block).items():
        run = {} if prepare else options
        q = _quantize_layer(report, f"block {index} {name}", layer, entry, grid, inputs.pop(name, None), run)
        walk.replace(block, name, QuantLinear(q, layer.bias, backend))
        if done:
            done(q.shape[0] * q.shape[1])


def _quantize_layer(report, name, layer, entry, grid, inputs, options):
    w = walk.weight_array(layer)
    try:
        q = entry.layer(w, grid, inputs, **options)
    except BadInput as problem:
        raise BadInput(f"{name}: {problem}") from problem
    error, began = None, time.perf_counter()
    if inputs is not None and inputs.hessian is not None:
        error = layer_error(w, dequantize(q), inputs.hessian.H)
    report.seconds -= time.perf_counter() - began  # measuring is not quantizing
    report.layers.append(Layer(name, q.format, q.shape, q.nbytes, error))
    return q
