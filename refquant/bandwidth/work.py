"""What a step must move and compute: bytes and operations of one decode step, and of a prefill. SI units.

Decode makes one token for each sequence of a batch. It reads every matrix once, whatever the batch, and each sequence's
own KV cache; it multiplies each weight once for each sequence. Prefill takes a whole prompt at once: the same weights
are read, and multiplied once for each token of the prompt.

    bytes    weights (as stored) + embedding rows + KV cache read and written + activations in and out of each matrix
    flops    2 * weights * tokens + attention: 4 * heads * head_dim for each pair of a token and one before it
    decoding 2 operations for each quantized weight, once a step: code to number, times scale (less minimum)

Activations count 2 bytes a number. The least is counted: each input read once, each output written once, and what lies
between two matrices kept on the chip.

Leaves out: norms, rotary embedding, softmax and sampling (well under 1 % of either sum), and what a kernel re-reads.
"""

from dataclasses import dataclass
from functools import lru_cache

from refquant import ops
from refquant.bandwidth.cache import cache_bytes
from refquant.bandwidth.units import whole
from refquant.bandwidth.weights import Weights
from refquant.ggml_types import ggml_type

ACTIVATION = 2  # bytes of an activation
DENSE = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Work:
    """Least bytes moved and operations done by one step. `tokens` are those that come out (decode) or go in (prefill).

    weight_bytes, embedding_bytes, cache_read, cache_written, activation_bytes : bytes
    matmul_flops, attention_flops : operations on the device's fp16 rate
    decoding_flops : operations on its general cores, to turn codes into numbers
    """

    tokens: int
    weight_bytes: int
    embedding_bytes: int
    cache_read: int
    cache_written: int
    activation_bytes: int
    matmul_flops: int
    attention_flops: int
    decoding_flops: int

    @property
    def bytes(self) -> int:
        """All bytes moved."""
        parts = self.weight_bytes + self.embedding_bytes + self.activation_bytes
        return parts + self.cache_read + self.cache_written

    @property
    def flops(self) -> int:
        """All multiplications and additions but those that decode weights."""
        return self.matmul_flops + self.attention_flops

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / self.bytes


@lru_cache(maxsize=4096)  # the layers of a model repeat a few shapes
def _through(shape: tuple[int, int], name: str, m: int) -> tuple[int, int, int]:
    """Bytes and operations of `m` tokens through a matrix, and the operations that decode it."""
    traffic = ops.traffic("matmul", shape, name, m=m, activation_bytes=ACTIVATION)
    return traffic.bytes, traffic.flops, 0 if name in DENSE else ops.traffic("dequantize", shape, name).flops


def _work(weights: Weights, tokens, last, pairs, cache_read, cache_written, blocks=None, output=True) -> Work:
    """Sum up `tokens` rows through the blocks, `last` of them through the output matrix, `pairs` in attention.

    `cache_read` and `cache_written` are bytes for all blocks; a part of the blocks gets its share.
    """
    shape = weights.shape
    blocks = range(shape.layers) if blocks is None else blocks
    read = activations = flops = decoding = 0
    for tensor in weights.tensors:
        outside = tensor.layer is None
        if not (output and weights.multiplies(tensor) if outside else tensor.layer in blocks):
            continue
        read += tensor.nbytes
        if not tensor.is_matrix:
            continue
        m = last if outside else tokens
        moved, product, codes = _through(tensor.shape, tensor.format, m)
        activations += moved - tensor.nbytes  # what the matrix itself does not account for
        flops += product
        decoding += codes
    embedding = next(tensor.format for tensor in weights.tensors if tensor.is_embedding)
    rows = tokens * ggml_type(embedding).nbytes((shape.hidden,)) if 0 in blocks else 0
    here, attention = len(blocks), 4 * shape.heads * shape.head_dim * len(blocks) * pairs
    cache_read, cache_written = (size * here // shape.layers for size in (cache_read, cache_written))
    return Work(tokens, read, rows, cache_read, cache_written, activations, flops, attention, decoding)


def decode_step(
    weights: Weights,
    context: int,
    batch: int = 1,
    cache: str = "F16",
    blocks: range | None = None,
    output: bool = True,
) -> Work:
    """One token for each of `batch` sequences that hold `context` tokens each already.

    Parameters
    ----------
    weights : `weights.store(model, storage)`
    context : int
        Tokens in the KV cache of each sequence, before this step.
    batch : int
    cache : str
        ggml type of the KV cache.
    blocks : range, optional
        Only these blocks (a side of a split); with `output` False, without the output matrix.

    Raises
    ------
    BadInput
        A batch of 0, a negative context.
    """
    whole("context", context, 0)
    whole("batch", batch)
    read = cache_bytes(weights.shape, context, batch, cache)
    written = cache_bytes(weights.shape, 1, batch, cache)
    return _work(weights, batch, batch, batch * (context + 1), read, written, blocks, output)


def prefill(weights: Weights, tokens: int, batch: int = 1, cache: str = "F16") -> Work:
    """The prompt of `tokens` tokens of each of `batch` sequences; only each last token goes through the output."""
    whole("tokens", tokens)
    whole("batch", batch)
    written = cache_bytes(weights.shape, tokens, batch, cache)
    return _work(weights, batch * tokens, batch, batch * tokens * (tokens + 1) // 2, 0, written)
