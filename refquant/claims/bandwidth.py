"""Claims on bytes and speed: the ratio of bit-widths, what decode is bound by, prefill, accumulation."""

import numpy as np

from refquant.bandwidth.devices import DEVICES, find_device
from refquant.bandwidth.roofline import critical_batch, step_time
from refquant.bandwidth.speedup import fit_line, ideal_ratio, linear_bits
from refquant.bandwidth.weights import store
from refquant.bandwidth.work import decode_step, prefill
from refquant.claims.ledger import Evidence, Finding, claim, equal, every, within
from refquant.quantized import find_format

MODEL = "llama-2-7b"
# llm-awq's README, RTX 4090, seconds a token in fp16 and in 4 bits
TINYCHAT = {"llama-2-7b": (16.17e-3, 6.02e-3), "llama-3-8b": (17.07e-3, 6.66e-3)}

# arXiv 2208.07339, table 1: C4 perplexity unquantized and with int8 absmax, by parameters in 10^9
INT8_ABSMAX = {
    0.125: (25.65, 87.76),
    1.3: (15.91, 16.55),
    2.7: (14.43, 15.11),
    6.7: (13.30, 14.59),
    13: (12.45, 19.08),
}


def decode_ratio(storage: str, context: int = 512, batch: int = 1, model: str = MODEL, device: str = "a100") -> float:
    """Decode time in F16 over that in `storage`, by the roofline."""
    place = find_device(device)
    slow, fast = (
        step_time(decode_step(store(model, kind), context, batch), place).seconds for kind in ("F16", storage)
    )
    return slow / fast


@claim("bandwidth", "Decode is bound by memory bandwidth: each token reads all weights and does little with them.")
def decode_is_bandwidth_bound(proof: Evidence) -> Finding:
    """Roofline of Llama-2-7B in F16 on every device with a published rate, batches of 1 and 512."""
    weights = store(MODEL, "F16")
    places = [device for device in DEVICES.values() if "fp16" in device.rates]
    bound = {
        batch: [step_time(decode_step(weights, 0, batch), place).bound == "memory" for place in places]
        for batch in (1, 512)
    }
    limit = critical_batch(weights, find_device("a100"))
    one = decode_step(weights, 0)
    return Finding(
        f"{one.intensity:.2f} operations a byte at batch 1; an A100 does {find_device('a100').ridge():.0f}",
        every(bound[1] + bound[512]),
        {"intensity": one.intensity, "critical_batch_a100": limit, "bound_at_1": sum(bound[1]), "devices": len(places)},
        f"up to a batch of {limit:.0f} on an A100 with short contexts; beyond, arithmetic binds",
    )


@claim("bandwidth", "Half the bytes a weight (16 to 8 bits) roughly doubles decode throughput.")
def int8_doubles_decode(proof: Evidence) -> Finding:
    """Ratio by the roofline, short and long context, small and large batch; within 10 % of 2."""
    ratios = {f"{c}x{b}": decode_ratio("int8-row", c, b) for c, b in ((512, 1), (4096, 1), (2048, 16), (512, 256))}
    return Finding(
        f"{ratios['512x1']:.2f} at 512 tokens, {ratios['4096x1']:.2f} at 4096, {ratios['2048x16']:.2f} at 16 x 2048",
        within(ratios.values(), 1.8, 2.2),
        ratios,
        "one sequence with a short context; the KV cache does not shrink with the weights",
    )


@claim("bandwidth", "Going from FP16 to INT4 moves four times fewer bytes.")
def int4_moves_a_quarter(proof: Evidence) -> Finding:
    """The Linear layers alone, then the whole model, as stored with group size 128."""
    dense, packed = store(MODEL, "F16"), store(MODEL, "int4-g128")
    linear, whole = linear_bits(dense) / linear_bits(packed), dense.read_bytes / packed.read_bytes
    return Finding(
        f"{linear:.2f} in the Linear layers, {whole:.2f} over the whole of Llama-2-7B",
        equal(linear, 4, 0.01),
        {"linear": linear, "whole_model": whole},
        "scales and zero-points cost 4 %, an output matrix kept in 16 bits more",
    )


@claim("bandwidth", "INT4 decode is up to 4 times faster than FP16.")
def int4_is_at_most_four_times(proof: Evidence) -> Finding:
    """Predicted bound and published measurements stay below 4."""
    ratios = {f"roofline, {name}": decode_ratio("int4-g128", 0, 1, name) for name in TINYCHAT}
    ratios |= {f"TinyChat, {name}": slow / fast for name, (slow, fast) in TINYCHAT.items()}
    return Finding(
        f"at most {max(ratios.values()):.2f} by the roofline; measured {ratios['TinyChat, llama-2-7b']:.2f} and "
        f"{ratios['TinyChat, llama-3-8b']:.2f}",
        every(value <= 4 for value in ratios.values()),
        ratios,
        "as a bound; GPTQ's 4.53 on OPT-175B also saved six of eight GPUs",
        "llm-awq README, RTX 4090",
    )


@claim("bandwidth", "AWQ and GPTQ INT4 g128 give the full fourfold bandwidth improvement.")
def serving_gets_the_full_four(proof: Evidence) -> Finding:
    """Published end-to-end ratios within 5 % of 4, beside Marlin's ideal of 16 / 4.125."""
    ratios = {f"TinyChat, {name}": slow / fast for name, (slow, fast) in TINYCHAT.items()}
    ideal = ideal_ratio(16, 4.125)
    return Finding(
        f"{min(ratios.values()):.2f} to {max(ratios.values()):.2f} measured; {ideal:.2f} is Marlin's ideal",
        within(ratios.values(), 3.8, 4.2),
        ratios | {"ideal at 4.125 bits": ideal},
        "no measured end-to-end ratio reaches it",
        "llm-awq README, RTX 4090; Marlin README",
    )


@claim("bandwidth", "What keeps the speed-up below the ratio of bits is overhead that compression does not shorten.")
def overhead_explains_the_rest(proof: Evidence) -> Finding:
    """A line through two timed storages gives bandwidth and overhead; both plausible for two models on one card."""
    numbers, fits = {}, []
    for name, (slow, fast) in TINYCHAT.items():
        dense, packed = (store(name, kind).read_bytes for kind in ("F16", "int4-g128"))
        bandwidth, overhead = fit_line((dense, slow), (packed, fast))
        share = bandwidth / find_device("rtx-4090").bandwidth
        numbers |= {f"{name}: share of 1008 GB/s": share, f"{name}: overhead ms": 1e3 * overhead}
        fits.append(0.5 < share <= 1 and overhead > 0)
    shares = [value for key, value in numbers.items() if "share" in key]
    fixed = [value for key, value in numbers.items() if "overhead" in key]
    return Finding(
        f"{100 * min(shares):.0f} to {100 * max(shares):.0f} % of the bandwidth and {min(fixed):.1f} to "
        f"{max(fixed):.1f} ms a token explain both measurements",
        every(fits),
        numbers,
        source="llm-awq README, RTX 4090; our fit",
    )


def _ratio(bits: int, claimed: float):
    """Build the test of one row of the lesson's boundary cases."""

    def test(proof: Evidence) -> Finding:
        nominal = ideal_ratio(16, bits)
        stored = f"int{bits}-{'row' if bits == 8 else 'g128'}"
        real = 16 / linear_bits(store(MODEL, stored)) if bits < 16 else 16 / linear_bits(store(MODEL, "F16"))
        return Finding(
            f"{nominal:g} nominal, {real:.2f} with the scales of {stored if bits < 16 else 'F16'}",
            every([equal(nominal, claimed) == "holds", equal(real, claimed, 0.01) == "holds"]),
            {"nominal": nominal, "stored": real},
            "of the codes alone" if bits < 8 else "",
        )

    test.__name__ = f"ratio_at_{bits}_bits"
    return test


for _bits, _claimed in ((16, 1), (8, 2), (4, 4), (2, 8)):
    claim("bandwidth", f"At {_bits} bits the ratio b_original / b_quantized is {_claimed}.")(_ratio(_bits, _claimed))


@claim("bandwidth", "Prefill is bound by arithmetic, not by memory.")
def prefill_is_compute_bound(proof: Evidence) -> Finding:
    """Prompts of 32 and 1024 tokens on an A100."""
    place, weights = find_device("a100"), store(MODEL, "F16")
    work = {n: prefill(weights, n) for n in (32, 1024)}
    bound = {n: step_time(work[n], place).bound for n in work}
    return Finding(
        f"{work[1024].intensity:.0f} operations a byte at 1024 tokens, {work[32].intensity:.0f} at 32; "
        f"the A100's ridge is {place.ridge():.0f}",
        every(kind == "arithmetic" for kind in bound.values()),
        {"intensity_32": work[32].intensity, "intensity_1024": work[1024].intensity, "ridge": place.ridge()},
        "prompts longer than about the ridge, 153 tokens on an A100",
    )


@claim("bandwidth", "After dequantization the products are accumulated in FP16.")
def accumulation_in_fp16(proof: Evidence) -> Finding:
    """Error of a dot product of 4096 with a float16 accumulator, in units of float16's own rounding."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal((64, 4096)).astype(np.float16) for _ in range(2))
    products = x.astype(np.float64) * w
    exact = products.sum(1)
    half, single = np.zeros(64, np.float16), np.zeros(64, np.float32)
    for j in range(4096):
        half = (half + products[:, j]).astype(np.float16)
        single = (single + products[:, j]).astype(np.float32)
    scale = np.sqrt((exact**2).mean()) * 2.0**-11
    errors = [float(np.sqrt(((total - exact) ** 2).mean()) / scale) for total in (half, single)]
    return Finding(
        f"a float16 accumulator errs by {errors[0]:.0f} roundings of float16, a float32 one by {errors[1]:.3f}",
        every([errors[0] <= 1]),
        {"float16_accumulator": errors[0], "float32_accumulator": errors[1]},
        "tensor cores accumulate in float32; only the result is rounded to 16 bits",
    )


@claim("bandwidth", "Weights are roughly Gaussian and better behaved than activations.")
def weights_are_better_behaved(proof: Evidence) -> Finding:
    """Largest over median magnitude, layer by layer: weights against inputs of the same layer, measured."""
    weights, inputs = (proof.of_layers(f"{what}_peak_over_median") for what in ("weight", "input"))
    tamer = [w < x for w, x in zip(weights, inputs, strict=True)]
    return Finding(
        f"largest over median: weights {np.median(weights):.0f}, inputs {np.median(inputs):.0f} in the median layer; "
        f"the weights' is smaller in {sum(tamer)} of {len(tamer)} layers",
        every(tamer),
        {
            "weights_median_layer": float(np.median(weights)),
            "inputs_median_layer": float(np.median(inputs)),
            "layers": len(tamer),
            "layers_with_tamer_weights": sum(tamer),
        },
        "in most layers; some weights stray as far",
        proof.models,
    )


@claim("bandwidth", "In long generations decode dominates the wall-clock time.")
def decode_dominates(proof: Evidence) -> Finding:
    """Share of decode in a request of 512 tokens in and 512 out, Llama-2-7B in F16, one sequence, on every GPU."""
    weights = store(MODEL, "F16")
    shares = {}
    for name, place in DEVICES.items():
        if "fp16" in place.rates:
            first = step_time(prefill(weights, 512), place).seconds
            rest = 512 * step_time(decode_step(weights, 768), place).seconds
            shares[name] = rest / (first + rest)
    return Finding(
        f"{100 * min(shares.values()):.1f} to {100 * max(shares.values()):.1f} % for 512 tokens in and 512 out",
        every(share > 0.5 for share in shares.values()),
        shares,
    )


@claim("bandwidth", "A few extreme activations can destroy a model that quantizes them naively.")
def outliers_ruin_int8(proof: Evidence) -> Finding:
    """Perplexity of int8 with one absmax scale, without the outlier decomposition, 10 % higher or more."""
    rises = {f"{size:g}B": after / before - 1 for size, (before, after) in INT8_ABSMAX.items()}
    return Finding(
        ", ".join(f"+{100 * rise:.0f} % {size}" for size, rise in rises.items()),
        every(rise >= 0.1 for rise in rises.values()),
        rises,
        "it depends on the model, not steadily on its size",
        "LLM.int8 paper, table 1, C4",
    )


@claim("bandwidth", "Outlier activations are 10 to 100 times the median.")
def outliers_are_ten_to_a_hundred(proof: Evidence) -> Finding:
    """Largest over median magnitude of every Linear layer's inputs, measured."""
    peaks = proof.of_layers("input_peak_over_median")
    return Finding(
        f"{min(peaks):.0f} to {max(peaks):.0f}, median layer {np.median(peaks):.0f}",
        within(peaks, 10, 100),
        {"smallest": min(peaks), "largest": max(peaks), "layers": len(peaks)},
        "some layers go far beyond 100",
        proof.models,
    )


@claim("bandwidth", "QLoRA keeps its frozen weights in 4 bits (NF4).")
def nf4_is_four_bits(proof: Evidence) -> Finding:
    """Codes and block scales: float32 per 64 weights, or 8 bits per 64 and float32 per 256 scales."""
    plain, double = (find_format(name).bits_per_weight((4096, 4096)) for name in ("nf4", "nf4-dq"))
    return Finding(
        f"{plain:.3f} bits, {double:.3f} with double quantization",
        equal(double, 4, 0.01),
        {"nf4": plain, "nf4_double": double},
        "the codes are 4 bits; the scales are on top",
        "QLoRA, arXiv 2305.14314, section 3",
    )
