"""The KV cache: keys and values of every token seen so far, read again for every token made. Bytes.

One token takes, in each layer, the keys and the values of each of its `kv_heads` heads::

    bytes a token = 2 * layers * kv_heads * head_dim * bytes per number

Grouped-query attention divides that by heads / kv_heads. A server that reserves room for the longest text possible
wastes most of it; blocks of a few tokens (PagedAttention, arXiv 2309.06180) waste half a block a sequence.

Leaves out: sliding windows (all tokens are counted), sharing of common prefixes, latent attention.
"""

from refquant.bandwidth.shapes import Shape, find_shape
from refquant.bandwidth.units import whole
from refquant.ggml_types import ggml_type


def bytes_per_token(shape: str | Shape, numbers: str = "F16") -> int:
    """Bytes that one token's keys and values take in all layers; `numbers` is a ggml type (F16, Q8_0, Q4_0, ...)."""
    shape = find_shape(shape)
    return 2 * shape.layers * ggml_type(numbers).nbytes((shape.kv_width,))


def cache_bytes(shape: str | Shape, tokens: int, batch: int = 1, numbers: str = "F16") -> int:
    """Bytes of the cache of `batch` sequences of `tokens` tokens each.

    Llama-2-7B, 4096 tokens, F16: 2 * 32 * 4096 * 2 bytes * 4096 = 2.15e9, llama.cpp's "KV self size = 2048 MiB".
    """
    return whole("tokens", tokens, 0) * whole("batch", batch) * bytes_per_token(shape, numbers)


def paged_bytes(shape: str | Shape, lengths, block: int = 16, numbers: str = "F16") -> int:
    """Bytes of the cache of sequences of these `lengths` in blocks of `block` tokens (vLLM's default is 16)."""
    blocks = sum(-(-whole("length", int(length), 0) // whole("block", block)) for length in lengths)
    return blocks * block * bytes_per_token(shape, numbers)


def paged_waste(mean_tokens: float, block: int = 16) -> float:
    """Share of a paged cache that holds nothing: (block - 1) / 2 empty places a sequence on average.

    That is exact where lengths are spread evenly over the remainders by `block`. PagedAttention's authors measured
    below 4 % (vLLM announcement, June 2023).
    """
    empty = (whole("block", block) - 1) / 2
    return empty / (mean_tokens + empty)


def reserved_waste(mean_tokens: float, reserved: int) -> float:
    """Share of a cache that holds nothing when each sequence reserves `reserved` tokens from the start.

    The PagedAttention paper measured 61.8 to 79.6 % (its figure 2: 20.4 to 38.2 % held tokens).
    """
    return 1 - min(mean_tokens / whole("reserved", reserved), 1.0)
