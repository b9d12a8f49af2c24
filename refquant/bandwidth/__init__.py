"""What serving costs: bytes, operations, seconds, from a model's shape and a device's data. SI units throughout.

    units     sizes as people write them; the checks of arguments
    devices   peak bandwidth and arithmetic, with sources; probe measures this machine
    shapes    layers, widths, heads: presets, or any config.json
    weights   what every tensor takes in a mix or a format
    cache     the KV cache; what paging saves
    work      bytes and operations of a decode step and of a prefill
    roofline  seconds; the batch from which on arithmetic binds
    speedup   the ideal ratio b_original / b_quantized, and why less is measured
    split     CPU and GPU together, llama.cpp's -ngl
    serving   continuous batching, speculation, load: formulas; queue plays them step by step
    stack     all techniques at once: do their gains multiply?
    quality   published and measured perplexities
    choose    where you serve, how much memory, how much loss

No model is loaded and no tensor is made: a 405B model is planned as fast as a small one.
"""

from refquant.bandwidth import (
    cache,
    choose,
    devices,
    quality,
    queue,
    roofline,
    serving,
    shapes,
    speedup,
    split,
    stack,
    weights,
    work,
)

__all__ = [
    "cache",
    "choose",
    "devices",
    "quality",
    "queue",
    "roofline",
    "serving",
    "shapes",
    "speedup",
    "split",
    "stack",
    "weights",
    "work",
]
