"""Bit order, decided here and nowhere else: b-bit codes as a dense stream, least significant bit first.

Code j of a row occupies bits b*j to b*j + b - 1 of the row's stream; bit i of the stream is bit i % 8 of byte i // 8.
Three-bit codes therefore cross bytes::

    byte      0                        1                        2
    bit       7  6  5  4  3  2  1  0   7  6  5  4  3  2  1  0   7  6  5  4  3  2  1  0
    3 bits   [2 ][  1   ][   0   ]    [5][   4   ][   3   ][2 ... ]
    4 bits   [    1     ][    0    ]  [    3     ][    2    ]

Read as little-endian 32-bit words, the stream is the one of GPTQ's and compressed-tensors' packed tensors.
"""

import numpy as np

from refquant.errors import BadInput


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` codes of `bits` bits; the last byte may be partly used."""
    return -(-count * bits // 8)


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes [..., count], each below 2^bits, into uint8 [..., packed_bytes(count, bits)]; spare bits are 0."""
    codes = np.asarray(codes)
    if codes.size and (codes.min() < 0 or codes.max() >= 1 << bits):
        raise BadInput(
            f"codes must lie in 0..{(1 << bits) - 1} to be packed in {bits} bits, got {codes.min()}..{codes.max()}"
        )
    count = codes.shape[-1]
    packed = np.zeros((*codes.shape[:-1], _whole(count) // 8 * bits), np.uint8)
    for i, byte, shift in _places(bits):
        each = codes[..., i::8].astype(np.uint8)
        packed[..., byte::bits][..., : each.shape[-1]] |= each << shift
        if shift + bits > 8:
            packed[..., byte + 1 :: bits][..., : each.shape[-1]] |= each >> (8 - shift)
    return np.ascontiguousarray(packed[..., : packed_bytes(count, bits)])


def unpack_bits(stream: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Unpack `count` codes, uint8 [..., count], from uint8 [..., packed_bytes(count, bits)]."""
    if stream.shape[-1] != packed_bytes(count, bits):
        raise BadInput(f"{count} codes of {bits} bits take {packed_bytes(count, bits)} bytes, got {stream.shape[-1]}")
    spare = _whole(count) // 8 * bits - stream.shape[-1]
    stream = np.pad(stream, [(0, 0)] * (stream.ndim - 1) + [(0, spare)])
    codes = np.empty((*stream.shape[:-1], _whole(count)), np.uint8)
    for i, byte, shift in _places(bits):
        each = stream[..., byte::bits] >> shift
        if shift + bits > 8:
            each |= stream[..., byte + 1 :: bits] << (8 - shift)
        codes[..., i::8] = each & np.uint8((1 << bits) - 1)
    return np.ascontiguousarray(codes[..., :count])


def _whole(count: int) -> int:
    return -(-count // 8) * 8


def _places(bits: int) -> list[tuple[int, int, np.uint8]]:
    """Of eight codes, which fill `bits` bytes: number, byte and bit where each begins. It may end in the next byte."""
    return [(i, bits * i // 8, np.uint8(bits * i % 8)) for i in range(8)]


def pack_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes [..., count] into int32 [..., ceil(count * bits / 32)]: the same stream, cut into words."""
    stream = pack_bits(codes, bits)
    spare = -stream.shape[-1] % 4
    stream = np.pad(stream, [(0, 0)] * (stream.ndim - 1) + [(0, spare)])
    return np.ascontiguousarray(stream).view("<i4").astype(np.int32, copy=False)


def unpack_words(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Unpack `count` codes, uint8 [..., count], from int32 [..., ceil(count * bits / 32)]."""
    if words.dtype.kind not in "iu" or words.dtype.itemsize != 4 or words.shape[-1] != -(-count * bits // 32):
        raise BadInput(
            f"{count} codes of {bits} bits take {-(-count * bits // 32)} 32-bit words, got {words.shape[-1]} of "
            f"{words.dtype}"
        )
    stream = np.ascontiguousarray(words.astype("<i4", copy=False)).view(np.uint8)
    return unpack_bits(stream[..., : packed_bytes(count, bits)], bits, count)
