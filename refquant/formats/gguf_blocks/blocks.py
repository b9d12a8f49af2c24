"""What all the block formats share: a row is cut into blocks of 32 or 256 weights, each a little record of its own.

A record holds one or two float16 numbers that scale the whole block, perhaps small integers that scale its sub-blocks,
and the codes of the weights. The codes are narrower than a byte, and nearly all formats lay them out in **planes**: a
run of `width` bytes holds `8 / bits` times as many codes, and its first `width` codes take the lowest bits of the
bytes, the next `width` codes the bits above, and so on. Four-bit codes, width 16 (Q4_0)::

    byte            0         1               15
    bits 3..0    code  0   code  1   ...   code 15        plane 0
    bits 7..4    code 16   code 17   ...   code 31        plane 1

Two-bit codes, width 32 (Q2_K)::

    byte            0         1               31
    bits 1..0    code  0   code  1   ...   code 31        plane 0
    bits 3..2    code 32   code 33   ...   code 63        plane 1
    bits 5..4    code 64   code 65   ...   code 95        plane 2
    bits 7..6    code 96   code 97   ...   code 127       plane 3

A vector unit that loads `width` bytes gets a plane with one shift and one mask, its codes already in order; neighbours
in one byte would have to be pulled apart. To read such bytes as neighbouring codes is the commonest mistake about GGUF.

Numbers are little-endian. In the tables, `f2` is a float16, `u1` a byte, `i1` a signed byte.
"""

import numpy as np

from refquant.casts import from_float16
from refquant.errors import BadInput
from refquant.quantized import Format, register_format


def register(name: str, weights: int, block: np.dtype) -> Format:
    """Register the format `name`, which keeps `weights` weights in each record of dtype `block`."""

    def layout(n, k):
        if k % weights:
            raise BadInput(f"{name}: a row must be a multiple of {weights} weights wide, got {k}")
        return {"blocks": ((n, k // weights * block.itemsize), ("uint8",))}

    return register_format(Format(name, name, layout, stream=True))


def records(arrays: dict, block: np.dtype) -> np.ndarray:
    """View the bytes [n, bytes per row] as records [n, blocks per row]."""
    return np.ascontiguousarray(arrays["blocks"]).view(block)


def as_bytes(block: np.dtype, **fields: np.ndarray) -> dict:
    """Fill records from arrays [n, blocks per row, ...] and return them as the one array of the format."""
    filled = np.empty(next(iter(fields.values())).shape[:2], block)
    for field, values in fields.items():
        filled[field] = values
    return {"blocks": filled.view(np.uint8)}


def unpack_planes(data: np.ndarray, bits: int, width: int) -> np.ndarray:
    """Codes uint8 [..., count] from uint8 [..., count * bits / 8], in planes of `width`."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]  # [planes, 1]
    planes = data.reshape(*data.shape[:-1], -1, 1, width) >> shifts & np.uint8((1 << bits) - 1)
    return planes.reshape(*data.shape[:-1], -1)


def pack_planes(codes: np.ndarray, bits: int, width: int) -> np.ndarray:
    """Bytes uint8 [..., count * bits / 8] from codes [..., count], each below 2^bits, in planes of `width`."""
    codes = unsigned(codes, bits)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    planes = codes.reshape(*codes.shape[:-1], -1, 8 // bits, width) << shifts
    return np.bitwise_or.reduce(planes, axis=-2).reshape(*codes.shape[:-1], -1)


def unsigned(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes as uint8, after a check that each fits `bits` bits: a larger one would spill into its neighbour."""
    if codes.dtype.kind not in "ui":
        raise BadInput(f"codes and scales of {bits} bits must be integers, got {codes.dtype}")
    if codes.size and (codes.min() < 0 or codes.max() >> bits):
        raise BadInput(f"codes must lie in 0..{(1 << bits) - 1} for {bits} bits, got {codes.min()}..{codes.max()}")
    return codes.astype(np.uint8)


def in_blocks(codes: np.ndarray, weights: int) -> np.ndarray:
    """Codes [n, k] as [n, blocks per row, weights]."""
    return codes.reshape(len(codes), -1, weights)


def in_rows(codes: np.ndarray) -> np.ndarray:
    """Codes [n, blocks per row, ...] as [n, k]."""
    return codes.reshape(len(codes), -1)


def scaled(codes: np.ndarray, scale: np.ndarray, minimum: np.ndarray | None = None) -> np.ndarray:
    """Return weights float32 [n, k] = scale * code, or scale * code - minimum; one scale for every k / (its count).

    `codes` [n, k] of any integer dtype; `scale` and `minimum` float32 [n, ...]. Each operation rounds to float32.
    """
    n, k = codes.shape
    scale = scale.reshape(n, -1, 1)
    with np.errstate(all="ignore"):
        w = scale * codes.reshape(n, scale.shape[1], -1).astype(np.float32)
        if minimum is not None:
            w = w - minimum.reshape(scale.shape)
    return w.reshape(n, k)


def product(half: np.ndarray, integers: np.ndarray) -> np.ndarray:
    """Scales of sub-blocks, float32 [n, blocks, subs]: the block's float16 [n, blocks] times its integers."""
    with np.errstate(all="ignore"):
        return from_float16(half)[..., None] * integers.astype(np.float32)
