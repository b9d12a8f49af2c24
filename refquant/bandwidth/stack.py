"""Stacking: quantization, grouped queries, paged cache, continuous batching, speculation. Do their gains multiply?

One full server is computed with any set of the five switched on. Memory decides how many sequences run, the roofline
how long a step takes; tokens per second follow::

    sequences       (memory - weights - reserve) / (bytes of one sequence's cache, empty places included)
    seconds a step  roofline at that batch
    tokens a step   sequences * share of places in use (static batching) * accepted tokens (speculation)

Quantization and the cache techniques multiply only as long as decode is bound by bandwidth and memory is short: each
makes room for sequences that the other would have made room for too. Speculation gains little where a large batch has
already put the arithmetic to use. `gains` prints each alone, their product, and what they give together.

Without grouped queries means the same model with a key head for every query head. Tokens, bytes, seconds.

Source: `cache`, `roofline` and `serving`, each with its own.
Leaves out: prefill's share of the time, and what a scheduler wastes.
"""

import math
from dataclasses import dataclass, replace

from refquant.bandwidth.cache import bytes_per_token, paged_waste, reserved_waste
from refquant.bandwidth.devices import Device
from refquant.bandwidth.roofline import Time, step_time
from refquant.bandwidth.serving import accepted_tokens, continuous_gain
from refquant.bandwidth.shapes import Shape, find_shape
from refquant.bandwidth.split import RESERVE
from refquant.bandwidth.units import show_bytes, whole
from refquant.bandwidth.weights import Weights, store
from refquant.bandwidth.work import Work, decode_step
from refquant.errors import BadInput

TECHNIQUES = ("quantization", "gqa", "paged", "continuous", "speculative")


@dataclass(frozen=True)
class Workload:
    """What the server is asked for, and how each technique is set up.

    prompt : tokens of every prompt; lengths : tokens that requests make; reserved : tokens that an unpaged cache keeps
    room for; block : tokens in a page; most : sequences at most; draft_model, draft, acceptance : speculation.
    """

    prompt: int = 512
    lengths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    reserved: int = 4096
    block: int = 16
    most: int = 256
    draft_model: str = "llama-3.2-1b"
    draft: int = 4
    acceptance: float = 0.7

    def __post_init__(self):
        whole("prompt", self.prompt, 0)
        for name in ("reserved", "block", "most", "draft"):
            whole(name, getattr(self, name))
        if not self.lengths:
            raise BadInput("lengths: expected at least one number of tokens")
        for length in self.lengths:
            whole("length", length)
        accepted_tokens(self.acceptance, self.draft)

    @property
    def mean_context(self) -> float:
        """Tokens in a sequence's cache, mean over its life and over requests weighted by how long they stay."""
        made = sum(size * size for size in self.lengths) / sum(self.lengths) / 2
        return self.prompt + made


@dataclass(frozen=True)
class Server:
    """A full server with some techniques on."""

    techniques: frozenset[str]
    batch: int
    step: Time
    places_in_use: float
    tokens_per_step: float
    tokens_per_second: float


def many_tokens(work: Work, tokens: int) -> Work:
    """The work of a decode step that checks `tokens` tokens of each sequence: weights and cache are still read once."""
    whole("tokens", tokens)
    return replace(
        work,
        tokens=work.tokens * tokens,
        activation_bytes=work.activation_bytes * tokens,
        cache_written=work.cache_written * tokens,
        matmul_flops=work.matmul_flops * tokens,
        attention_flops=work.attention_flops * tokens,
    )


def serve(
    shape: str | Shape,
    storage: str,
    device: Device,
    techniques,
    workload: Workload | None = None,
    memory: int | None = None,
) -> Server:
    """Compute a full server of `shape` on `device` with these `techniques` on; `storage` is what quantization uses.

    Raises `BadInput` where the weights and one sequence do not fit, or for a technique that does not exist.
    """
    techniques, load = frozenset(techniques), workload or Workload()
    if techniques - set(TECHNIQUES):
        raise BadInput(f"unknown technique {sorted(techniques - set(TECHNIQUES))}; known: {', '.join(TECHNIQUES)}")
    shape = find_shape(shape)
    if "gqa" not in techniques:
        shape = replace(shape, kv_heads=shape.heads)
    kind = storage if "quantization" in techniques else "F16"
    weights = store(shape, kind)
    draft = store(load.draft_model, kind) if "speculative" in techniques else None
    used = load.mean_context
    waste = paged_waste(used, load.block) if "paged" in techniques else reserved_waste(used, load.reserved)
    each = used / (1 - waste) * (bytes_per_token(shape) + (bytes_per_token(draft.shape) if draft else 0))
    room = (memory or device.memory or 0) - RESERVE - weights.nbytes - (draft.nbytes if draft else 0)
    batch = min(math.floor(room / each), load.most)
    if batch < 1:
        raise BadInput(
            f"{shape.name} in {kind} takes {show_bytes(weights.nbytes)} and {show_bytes(each)} a sequence; "
            f"{device.name} has {show_bytes(memory or device.memory or 0)}"
        )
    return _run(weights, draft, device, techniques, load, batch)


def _run(weights: Weights, draft: Weights | None, device: Device, techniques, load: Workload, batch: int) -> Server:
    """Time one step of a batch, and count the tokens that it gives."""
    context = round(load.mean_context)
    step, accepted = step_time(decode_step(weights, context, batch), device), 1.0
    if draft:
        drafting = step_time(decode_step(draft, context, batch), device).seconds * load.draft
        step = step_time(many_tokens(decode_step(weights, context, batch), load.draft + 1), device, overhead=drafting)
        accepted = accepted_tokens(load.acceptance, load.draft)
    in_use = 1.0 if "continuous" in techniques else 1 / continuous_gain(load.lengths, batch)
    tokens = batch * in_use * accepted
    return Server(techniques, batch, step, in_use, tokens, tokens / step.seconds)


@dataclass(frozen=True)
class Gains:
    """Tokens per second with nothing on, the gain of each technique alone, their product, and the gain of all."""

    base: Server
    alone: dict[str, float]
    together: Server

    @property
    def product(self) -> float:
        """What the single gains would give if they multiplied."""
        return math.prod(self.alone.values())

    @property
    def actual(self) -> float:
        """What they give together."""
        return self.together.tokens_per_second / self.base.tokens_per_second


def gains(
    shape: str | Shape, storage: str, device: Device, workload: Workload | None = None, memory: int | None = None
) -> Gains:
    """Compute each technique alone over the bare server, and all five together."""
    base = serve(shape, storage, device, (), workload, memory)
    alone = {
        name: serve(shape, storage, device, (name,), workload, memory).tokens_per_second / base.tokens_per_second
        for name in TECHNIQUES
    }
    return Gains(base, alone, serve(shape, storage, device, TECHNIQUES, workload, memory))
