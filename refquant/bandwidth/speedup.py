"""How much faster decode gets: the ideal ratio b_original / b_quantized, and step by step why less is measured.

Each line of the account is computed with one more fact than the line above::

    nominal bits         16 / 4
    scales, zero-points  the Linear layers as they are stored
    whole model          embedding and output stay in 16 bits (or in 6, in a mix), norms stay
    KV cache             is not quantized with the weights
    arithmetic           the roofline: multiplying and decoding may take longer than reading
    bandwidth reached    a kernel that decodes 4-bit codes may reach less of the peak than a copy of 16-bit numbers
    fixed costs          launches, norms, sampling: seconds a step that no compression shortens

The last two are measurements; `fit_line` gets the common part of both from two timed storages of one model. Ratios have
no unit.
"""

from dataclasses import dataclass

from refquant.bandwidth.devices import Device
from refquant.bandwidth.roofline import step_time
from refquant.bandwidth.units import positive
from refquant.bandwidth.weights import Weights
from refquant.bandwidth.work import decode_step
from refquant.errors import BadInput


def ideal_ratio(original_bits: float, quantized_bits: float) -> float:
    """The lesson's ratio, b_original / b_quantized."""
    return positive("original bits", original_bits) / positive("quantized bits", quantized_bits)


@dataclass(frozen=True)
class Reason:
    """One line of the account: the ratio with everything counted so far, and what was added."""

    what: str
    ratio: float


def linear_bits(weights: Weights) -> float:
    """Bits per weight of the matrices inside the blocks, scales and zero-points included."""
    inside = [tensor for tensor in weights.tensors if tensor.is_matrix and tensor.layer is not None]
    return 8 * sum(t.nbytes for t in inside) / sum(t.shape[0] * t.shape[1] for t in inside)


def account(
    original: Weights,
    quantized: Weights,
    device: Device,
    nominal: tuple[float, float] | None = None,
    context: int = 1024,
    batch: int = 1,
    efficiency: tuple[float, float] = (1.0, 1.0),
    overhead: float = 0.0,
) -> list[Reason]:
    """Ratio of decode times, original over quantized, with one more fact counted in every line.

    Parameters
    ----------
    original, quantized : Weights
        The same model in two storages.
    nominal : (bits, bits), optional
        What the names promise, such as (16, 4).
    efficiency : (share, share)
        Share of the bandwidth that the kernels of the two storages reach.
    overhead : float
        Seconds a step that both pay.
    """
    if original.shape != quantized.shape:
        raise BadInput(f"two storages of one model are compared, got {original.shape.name}, {quantized.shape.name}")
    pair = (original, quantized)
    work = [decode_step(weights, context, batch) for weights in pair]

    def times(efficiency=(1.0, 1.0), overhead=0.0):
        slow, fast = (
            step_time(w, device, efficiency=e, overhead=overhead) for w, e in zip(work, efficiency, strict=True)
        )
        return slow.seconds / fast.seconds

    lines = [Reason("nominal bits", ideal_ratio(*nominal))] if nominal else []
    return [
        *lines,
        Reason("scales and zero-points", linear_bits(original) / linear_bits(quantized)),
        Reason("whole model", original.read_bytes / quantized.read_bytes),
        Reason(f"KV cache and activations, {batch} x {context} tokens", work[0].bytes / work[1].bytes),
        Reason("arithmetic and decoding", times()),
        Reason("bandwidth that kernels reach", times(efficiency)),
        Reason("fixed costs", times(efficiency, overhead)),
    ]


def fit_line(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """Return (bytes per second, seconds of overhead) of the line through two measurements (bytes, seconds) of a step.

    Raises `BadInput` when the larger step is not the slower one, or when the line gives a negative overhead.
    """
    (small, fast), (large, slow) = sorted([first, second])
    for name, value in (("bytes", small), ("bytes", large), ("seconds", fast), ("seconds", slow)):
        positive(name, value)
    if large == small or slow <= fast:
        raise BadInput(f"the step of {large} bytes must be slower than that of {small}, got {slow} and {fast} s")
    bandwidth = (large - small) / (slow - fast)
    overhead = fast - small / bandwidth
    if overhead < 0:
        raise BadInput(f"a line through {first} and {second} gives {overhead:.3g} s at 0 bytes: no common bandwidth")
    return bandwidth, overhead
