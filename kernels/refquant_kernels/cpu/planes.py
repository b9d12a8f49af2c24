"""Codes of 256 weights into the bytes of a record, in planes (see `formats.gguf_blocks.blocks`), for sixteen blocks.

`codes` and `image` hold a vector of sixteen lanes for every code and every byte; `byte` is where in the record it goes.
"""

from refquant_kernels.cpu.compile import helper
from refquant_kernels.cpu.simd import LANES, load, splat_int, store

WEIGHTS = 256


@helper
def pack_nibbles(codes, width, image, byte):
    """256 codes of 4 bits in planes of `width`."""
    for i in range(0, WEIGHTS, 2 * width):
        for j in range(width):
            low, high = load(codes, LANES * (i + j)), load(codes, LANES * (i + j + width))
            store(image, LANES * (byte + i // 2 + j), (low & 15) | ((high & 15) << 4))


@helper
def pack_pairs(codes, shift, image, byte):
    """Two bits, from `shift` on, of 256 codes in planes of 32."""
    for i in range(0, WEIGHTS, 128):
        for j in range(32):
            value = splat_int(0)
            for plane in range(4):
                value = value | (((load(codes, LANES * (i + 32 * plane + j)) >> shift) & 3) << (2 * plane))
            store(image, LANES * (byte + i // 4 + j), value)


@helper
def pack_bit(codes, bit, image, byte):
    """One bit of 256 codes in planes of 32."""
    for j in range(32):
        value = splat_int(0)
        for plane in range(8):
            value = value | (((load(codes, LANES * (32 * plane + j)) >> bit) & 1) << plane)
        store(image, LANES * (byte + j), value)
