"""Claims on stacking: grouped queries, continuous batching, speculation, and whether the gains multiply."""

from refquant.bandwidth.cache import bytes_per_token
from refquant.bandwidth.devices import find_device
from refquant.bandwidth.serving import accepted_tokens, continuous_gain, speculative_speedup
from refquant.bandwidth.shapes import find_shape
from refquant.bandwidth.stack import Workload, gains
from refquant.bandwidth.weights import store
from refquant.claims.ledger import Evidence, Finding, claim, every


@claim("serving", "Quantization composes with the other optimisations because they are orthogonal.")
def gains_multiply(proof: Evidence) -> Finding:
    """Product of the single gains against the gain of all, on three cards; within 10 % of each other."""
    numbers, cases = {}, []
    for card in ("l4", "rtx-4090", "h100"):
        result = gains("llama-3.1-8b", "int4-g128", find_device(card))
        numbers |= {f"{card}: product": result.product, f"{card}: together": result.actual}
        cases.append(abs(result.actual / result.product - 1) <= 0.1)
    return Finding(
        "; ".join(f"{card} {numbers[f'{card}: together']:.0f}x of {numbers[f'{card}: product']:.0f}x" for card in
                  ("l4", "rtx-4090", "h100")),
        every(cases),
        numbers,
        "they can be combined, but the gains do not multiply: each frees memory or arithmetic that another would use",
        "Llama-3.1-8B, int4-g128, the default `Workload`",
    )  # fmt: skip


@claim("serving", "Grouped-query attention reduces the bytes of the KV cache.")
def gqa_shrinks_the_cache(proof: Evidence) -> Finding:
    """Bytes a token of Llama-2-70B, and of the same model with a key head for each query head."""
    shape = find_shape("llama-2-70b")
    ours = bytes_per_token(shape)
    full = ours * shape.gqa
    return Finding(
        f"{ours:,} bytes a token instead of {full:,}",
        every([full / ours > 1]),
        {"bytes_a_token": ours, "without": full, "ratio": full / ours},
    )


@claim("serving", "Quantizing the weights makes more room for sequences, not smaller cache entries.")
def quantization_leaves_the_cache(proof: Evidence) -> Finding:
    """Cache bytes a token in two storages of one model, and sequences of 4096 tokens that fit an A100."""
    each = 4096 * bytes_per_token("llama-2-13b")
    room = {kind: (find_device("a100").memory - store("llama-2-13b", kind).nbytes) // each for kind in _PAIR}
    return Finding(
        f"{room['F16']} sequences with F16 weights, {room['int4-g128']} with int4-g128, {each / 1e9:.2f} GB each",
        every([room["int4-g128"] > room["F16"]]),
        {**{f"sequences, {kind}": count for kind, count in room.items()}, "gb_each": each / 1e9},
    )


_PAIR = ("F16", "int4-g128")


@claim("serving", "Continuous batching raises throughput over batches that wait for their longest sequence.")
def continuous_batching_gains(proof: Evidence) -> Finding:
    """E[longest of a batch] / E[length] at a batch of 16: mixed lengths, and equal ones."""
    mixed, equal_lengths = continuous_gain(Workload().lengths, 16), continuous_gain((256,), 16)
    return Finding(
        f"{mixed:.2f} times for lengths from 64 to 1024, {equal_lengths:.0f} for equal lengths",
        every([mixed > 1, equal_lengths > 1]),
        {"mixed": mixed, "equal": equal_lengths},
        "as far as lengths differ",
        "Orca, OSDI 2022; checked by simulation",
    )


@claim("serving", "Speculative decoding trades extra arithmetic for fewer sequential steps.")
def speculation_gains(proof: Evidence) -> Finding:
    """Tokens a step at acceptance 0.7 and four drafted, speed when verifying is free and when arithmetic binds."""
    tokens = accepted_tokens(0.7, 4)
    free, bound = speculative_speedup(0.7, 4, 0.1), speculative_speedup(0.7, 4, 0.1, verify_cost=5)
    return Finding(
        f"{tokens:.2f} tokens a step; {free:.2f} times as fast when bandwidth binds, {bound:.2f} when arithmetic does",
        every([tokens > 1, free > 1, bound > 1]),
        {"tokens_a_step": tokens, "bandwidth_bound": free, "arithmetic_bound": bound},
        "while decode is bound by bandwidth: small batches",
        "arXiv 2211.17192",
    )
