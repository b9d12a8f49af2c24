"""The roofline: a step takes as long as its slowest part: moving its bytes, its arithmetic, or decoding its weights.

    seconds = max(bytes / (efficiency * bandwidth), flops / rate, decoding / rate on general cores) + overhead

The three overlap on any device that hides memory behind arithmetic, so the largest counts, and the result is a floor.
`efficiency` (of the bandwidth) and `overhead` (seconds a step that depend on nothing: kernel launches, sampling) turn
the floor into a prediction; `speedup.fit_line` gets both from two measurements. Seconds, bytes, operations per second.

Source: Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009.
"""

import math
from dataclasses import dataclass

from refquant.bandwidth.devices import RATES, Device
from refquant.bandwidth.units import positive
from refquant.bandwidth.weights import Weights
from refquant.bandwidth.work import Work, decode_step
from refquant.errors import BadInput, UnknownName


@dataclass(frozen=True)
class Time:
    """Seconds of one step, and what they are made of; None where the device has no published rate."""

    tokens: int
    seconds: float
    memory: float
    arithmetic: float | None
    decoding: float | None
    overhead: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second over the whole batch."""
        return self.tokens / self.seconds

    @property
    def bound(self) -> str:
        """What sets the time: memory, arithmetic or decoding."""
        parts = {"memory": self.memory, "arithmetic": self.arithmetic or 0, "decoding": self.decoding or 0}
        return max(parts, key=parts.get)


def step_time(
    work: Work, device: Device, numbers: str = "fp16", efficiency: float = 1.0, overhead: float = 0.0
) -> Time:
    """Predict the seconds of one step on a device.

    Parameters
    ----------
    work : `decode_step(...)` or `prefill(...)`
    device : Device
        Without a published rate for `numbers`, its general fp32 rate is used; with neither, only memory counts.
    efficiency : float
        Share of the peak bandwidth that is reached, above 0 and at most 1.
    overhead : float
        Seconds added to every step.
    """
    if numbers not in RATES:
        raise UnknownName("arithmetic rate", numbers, RATES)
    if positive("efficiency", efficiency) > 1:
        raise BadInput(f"efficiency must lie above 0 and at most at 1, got {efficiency!r}")
    if not math.isfinite(overhead) or overhead < 0:
        raise BadInput(f"overhead must be seconds, 0 or more, got {overhead!r}")
    memory = work.bytes / (efficiency * device.bandwidth)
    rate, general = device.rates.get(numbers) or device.rates.get("fp32"), device.rates.get("fp32")
    arithmetic = work.flops / rate if rate else None
    decoding = work.decoding_flops / general if general else None
    seconds = max(memory, arithmetic or 0, decoding or 0) + overhead
    return Time(work.tokens, seconds, memory, arithmetic, decoding, overhead)


def critical_batch(weights: Weights, device: Device, context: int = 0, numbers: str = "fp16", cache="F16") -> float:
    """Batch from which on decode is bound by arithmetic: there, flops / rate = bytes / bandwidth.

    Both grow in a straight line with the batch, so the crossing is one division. `math.inf` where the KV cache of each
    further sequence takes longer to read than its arithmetic takes: such a decode stays bandwidth-bound at any batch.
    By rule of thumb: batch = ridge * bytes per weight / 2, so 153 for 16 bits on an A100 (312e12 / 2.039e12 * 2 / 2)
    and 38 for 4 bits.
    """
    rate = device.rate(numbers)
    one, two = (decode_step(weights, context, batch, cache) for batch in (1, 2))
    bytes_each, flops_each = two.bytes - one.bytes, two.flops - one.flops
    gain = flops_each / rate - bytes_each / device.bandwidth  # seconds by which each sequence helps arithmetic win
    if gain <= 0:
        return math.inf
    fixed = (one.bytes - bytes_each) / device.bandwidth - (one.flops - flops_each) / rate
    return max(fixed / gain, 1.0)


def rule_of_thumb(device: Device, bits_per_weight: float, numbers: str = "fp16") -> float:
    """Return the critical batch when nothing but weights is counted: ridge * bytes per weight / 2."""
    return device.ridge(numbers) * positive("bits per weight", bits_per_weight) / 8 / 2
