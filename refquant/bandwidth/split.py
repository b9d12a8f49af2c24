"""CPU and GPU together, as llama.cpp's -ngl does it: the last blocks on the card, the first ones in main memory.

With `gpu_layers` n, the output matrix goes to the card first, then the blocks from the last one down, n things in all;
so a model of 80 blocks is wholly on the card at 81. The embedding stays in main memory. Each block's KV cache lies with
its block. A token passes through the blocks in order, so the two sides take turns and their times add::

    seconds a token = bytes on the CPU side / CPU bandwidth + bytes on the card / GPU bandwidth

On the card must fit: the blocks, their KV cache, the workspace, and what the driver keeps. The workspace is that of
llama.cpp with flash attention, room for one micro-batch of logits and of hidden states in float32::

    workspace = ubatch * (vocab + hidden) * 4 bytes          Llama-3-8B, ubatch 512: 258.5 MiB, as llama.cpp prints

Bytes and seconds. A `Split` can be laid beside a measurement: `split.efficiency(measured tokens per second)`.

Source: llama-model.cpp of llama.cpp (`i_gpu_start = n_layer + 1 - n_gpu_layers`, 2025 and later; before, the output
matrix moved last).
Leaves out: more than one card; the crossing of activations (some 32 kB a token, microseconds); attention scores kept
without flash attention; moving only experts or only KV; the prompt, which llama.cpp may send to the card whole.
"""

from dataclasses import dataclass

from refquant.bandwidth.cache import cache_bytes
from refquant.bandwidth.devices import Device
from refquant.bandwidth.roofline import step_time
from refquant.bandwidth.units import GIB, positive, show_bytes, whole
from refquant.bandwidth.weights import Weights
from refquant.bandwidth.work import decode_step
from refquant.errors import BadInput

RESERVE = GIB // 2  # bytes that driver and CUDA context keep: 0.3 to 0.6 GiB on today's cards; an assumption


@dataclass(frozen=True)
class Side:
    """One side of a split. Sizes in bytes; `seconds` is its share of one decode step."""

    device: Device
    blocks: range
    has_output: bool
    weight_bytes: int
    cache_bytes: int
    workspace_bytes: int
    seconds: float

    @property
    def nbytes(self) -> int:
        """Bytes that this side must hold."""
        return self.weight_bytes + self.cache_bytes + self.workspace_bytes


@dataclass(frozen=True)
class Split:
    """Where every part of a model lies, and how fast decode should be."""

    weights: Weights
    context: int
    batch: int
    gpu_layers: int
    gpu: Side
    cpu: Side

    @property
    def most_layers(self) -> int:
        """The `gpu_layers` at which everything but the embedding is on the card."""
        return self.weights.shape.layers + 1

    @property
    def seconds(self) -> float:
        """Predicted seconds of one decode step."""
        return self.gpu.seconds + self.cpu.seconds

    @property
    def tokens_per_second(self) -> float:
        """Predicted tokens per second over the whole batch."""
        return self.batch / self.seconds

    def efficiency(self, measured: float) -> float:
        """Measured tokens per second as a share of the prediction."""
        return positive("measured tokens per second", measured) / self.tokens_per_second


def workspace_bytes(weights: Weights, ubatch: int = 512) -> int:
    """Bytes of the card's workspace for micro-batches of `ubatch` tokens."""
    return 4 * whole("ubatch", ubatch) * (weights.shape.vocab + weights.shape.hidden)


def plan_split(
    weights: Weights,
    gpu: Device,
    cpu: Device,
    context: int = 4096,
    batch: int = 1,
    gpu_layers: int | None = None,
    gpu_memory: int | None = None,
    cpu_memory: int | None = None,
    cache: str = "F16",
    ubatch: int = 512,
    reserve: int = RESERVE,
    efficiency: tuple[float, float] = (1.0, 1.0),
) -> Split:
    """Put as much on the card as fits (or what `gpu_layers` says), the rest in main memory, and predict the speed.

    Parameters
    ----------
    weights : `weights.store(model, storage)`
    gpu, cpu : Device
    context, batch : int
        Room for so many tokens in each of so many sequences; the prediction is for a cache that is full.
    gpu_layers : int, optional
        llama.cpp's -ngl, 0 to layers + 1; by default the most that fits.
    gpu_memory, cpu_memory : int, optional
        Bytes; by default the card's, and no limit.
    reserve : int
        Bytes of the card that are not ours.
    efficiency : (share, share)
        Share of the peak bandwidth that the card and the CPU reach.

    Raises
    ------
    BadInput
        It does not fit: the message says where, how much is needed and how much there is.
    """
    shape = weights.shape
    whole("context", context)
    whole("batch", batch)
    whole("reserve (bytes)", reserve, 0)
    for name, size in (("gpu_memory (bytes)", gpu_memory), ("cpu_memory (bytes)", cpu_memory)):
        if size is not None:
            positive(name, size)
    memory, most = gpu_memory or gpu.memory, shape.layers + 1
    if memory is None:
        raise BadInput(f"{gpu.name}: the size of its memory is not known; give gpu_memory in bytes")
    per_block = cache_bytes(shape, context, batch, cache) // shape.layers

    def card_side(n: int) -> tuple[range, int, int]:
        """The blocks of the card when n things are on it, the bytes of its weights, and of its workspace."""
        blocks = range(min(shape.layers + 1 - n, shape.layers), shape.layers)
        held = sum(weights.layer_bytes(i) for i in blocks) + (weights.output_bytes if n else 0)
        return blocks, held, workspace_bytes(weights, ubatch) if n else 0

    if gpu_layers is None:
        sizes = [(held + len(blocks) * per_block + space) for blocks, held, space in map(card_side, range(most + 1))]
        gpu_layers = max((n for n, size in enumerate(sizes) if size + reserve <= memory), default=0)
    elif whole("gpu_layers", gpu_layers, 0) > most:
        raise BadInput(f"{shape.name}: gpu_layers must lie in 0..{most}, got {gpu_layers}")
    blocks, held, space = card_side(gpu_layers)
    below = range(blocks.start)
    # With anything on the card, the output matrix is; a tied embedding then lies on both sides.
    beside = sum(weights.layer_bytes(i) for i in below) + weights.embedding_bytes if gpu_layers else weights.nbytes
    alone = 0 if gpu_layers else workspace_bytes(weights, ubatch)

    def seconds(device, part, output, share):
        if not part and not output:
            return 0.0
        return step_time(decode_step(weights, context, batch, cache, part, output), device, efficiency=share).seconds

    on = seconds(gpu, blocks, gpu_layers > 0, efficiency[0])
    off = seconds(cpu, below, not gpu_layers, efficiency[1])
    card = Side(gpu, blocks, gpu_layers > 0, held, per_block * len(blocks), space, on)
    rest = Side(cpu, below, not gpu_layers, beside, per_block * len(below), alone, off)
    if gpu_layers and card.nbytes + reserve > memory:
        raise BadInput(
            f"{gpu_layers} layers need {show_bytes(card.nbytes + reserve)} of {gpu.name}, with {show_bytes(memory)}"
        )
    room = cpu_memory or cpu.memory
    if room is not None and rest.nbytes > room:
        raise BadInput(f"main memory must hold {show_bytes(rest.nbytes)}, and has {show_bytes(room)}")
    return Split(weights, context, batch, gpu_layers, card, rest)
