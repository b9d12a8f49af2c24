"""quantize to TQ1_0 TQ2_0 MXFP4 and F16 BF16, byte for byte as `methods.kquants` and ggml: formats without a search.

Must move, for 4096 x 4096 weights: 67,108,864 bytes in; out 4,325,376 (TQ2_0), 8,912,896 (MXFP4), 33,554,432 (F16).
Must do: 5 operations a weight, 45 for MXFP4 (15 values tried); 10 for a cast. The memory is the floor for most.

The idea: blocks side by side, as in `quantize_k`; for the casts, sixteen neighbours, rounded in integer arithmetic.
"""

import numpy as np

from refquant.codebooks import E2M1_DOUBLED
from refquant_kernels.cpu.blocks import encoder
from refquant_kernels.cpu.compile import helper, kernel
from refquant_kernels.cpu.lanes import (
    block_starts,
    reciprocal,
    round_half_away,
    store_float16,
    to_float16,
    truncated,
    turn_in,
    turn_out,
)
from refquant_kernels.cpu.simd import (
    LANES,
    bits,
    from_bits,
    load,
    select,
    shift_right,
    splat,
    splat_int,
    store,
)

f32 = np.float32
DOUBLED = tuple(f32(v) for v in E2M1_DOUBLED)
TQ1_0, TQ2_0 = 0, 1
F16, BF16 = 0, 1


@helper
def largest_size(x, n):
    """The largest |x| of `n` vectors."""
    largest = splat(0.0)
    for i in range(0, LANES * n, LANES):
        v = abs(load(x, i))
        largest = select(v > largest, v, largest)
    return largest


@helper
def pack_trits(codes, start, width, trits, image, byte):
    """Codes 0..2 from vector `start` on, `trits` to a byte, in planes of `width`; see `formats.gguf_blocks.ternary`."""
    for m in range(width):
        value = splat_int(0)
        for t in range(5):
            value = value * 3
            if t < trits:
                value = value + load(codes, LANES * (start + t * width + m))
        # ceil(value * 256 / 243) without a division: 34522 / 2^23 is 1 / 243, close enough for all 243 values
        store(image, LANES * (byte + m), shift_right((value * 256 + 242) * 34522, splat_int(23)))


@kernel()
def quantize_ternary(w, importance, weighted, extra, k, first, last, out, which):
    """Groups first .. last - 1 of sixteen blocks, TQ1_0 or TQ2_0."""
    record, blocks = (54 if which == TQ1_0 else 66), w.size // 256
    starts, rows = np.empty(LANES, np.int64), np.arange(0, 16 * LANES, LANES)
    x, codes = np.empty(256 * LANES, np.float32), np.empty(256 * LANES, np.uint8)
    image = np.empty(66 * LANES, np.uint8)
    for group in range(first, last):
        block = LANES * group
        block_starts(block, blocks, 256, blocks, starts)
        turn_in(w, starts, 256, x, 0)
        d = largest_size(x, 256)
        inverse = reciprocal(d)
        for i in range(0, LANES * 256, LANES):
            store(codes, i, truncated(round_half_away(load(x, i) * inverse)) + 1)
        if which == TQ1_0:
            pack_trits(codes, 0, 32, 5, image, 0)
            pack_trits(codes, 160, 16, 5, image, 32)
            pack_trits(codes, 240, 4, 4, image, 48)
        else:
            for i in range(0, 256, 128):
                for j in range(i, i + 32):
                    low = load(codes, LANES * j) | (load(codes, LANES * (j + 32)) << 2)
                    high = load(codes, LANES * (j + 64)) | (load(codes, LANES * (j + 96)) << 2)
                    store(image, LANES * (i // 4 + j - i), low | (high << 4))
        store_float16(image, record - 2, to_float16(d))
        turn_out(image, record, rows, out, block * record)


@kernel()
def quantize_mxfp4(w, importance, weighted, logs, k, first, last, out, which):
    """Groups first .. last - 1 of sixteen blocks. `logs`: base 2, of each block's largest magnitude."""
    blocks = w.size // 32
    starts, rows = np.empty(LANES, np.int64), np.arange(0, 16 * LANES, LANES)
    x, image, exponent = np.empty(32 * LANES, np.float32), np.empty(17 * LANES, np.uint8), np.empty(LANES, np.int32)
    for group in range(first, last):
        block = LANES * group
        block_starts(block, blocks, 32, blocks, starts)
        turn_in(w, starts, 32, x, 0)
        for lane in range(LANES):
            log = logs[starts[lane] // 32]
            exponent[lane] = (int(np.floor(log)) + 125) & 255 if log > f32(-1000) else 0
        e = load(exponent, 0)
        # half of 2^(e - 127); the two smallest are subnormal
        half = from_bits(select(e < 2, splat_int(0x0020_0000) << e, (e - 1) << 23))
        for j in range(16):
            pair = splat_int(0)
            for plane in range(2):
                v = load(x, LANES * (j + 16 * plane))
                code, least = splat_int(0), abs(v)
                for value in range(1, 16):
                    error = abs(DOUBLED[value] * half - v)
                    nearer = error < least
                    code, least = select(nearer, splat_int(value), code), select(nearer, error, least)
                pair = pair | (code << (4 * plane))
            store(image, LANES * (1 + j), pair)
        store(image, 0, e)
        turn_out(image, 17, rows, out, block * 17)


def largest_logs(w: np.ndarray, n: int, k: int) -> np.ndarray:
    """log2 of each block's largest magnitude, float32, correctly rounded through float64; -infinity for all zero."""
    with np.errstate(divide="ignore"):
        return np.log2(np.abs(w.reshape(-1, 32)).max(axis=1).astype(np.float64)).astype(f32)


@kernel()
def quantize_half(w, importance, weighted, extra, k, first, last, out, which):
    """Sixteen neighbours to F16 or BF16; a group is sixteen of them, the last may be short."""
    halves, x = out.view(np.uint16), np.zeros(LANES, np.float32)
    for i in range(first * LANES, last * LANES, LANES):
        if i + LANES <= w.size:
            v = load(w, i)
        else:
            for j in range(w.size - i):
                x[j] = w[i + j]
            v = load(x, 0)
        if which == F16:
            half = to_float16(v)
        else:
            odd = shift_right(bits(v), splat_int(16)) & 1
            half = shift_right(bits(v) + (odd + 0x7FFF), splat_int(16))
        store(halves, i, half)


encoder("TQ1_0", quantize_ternary, TQ1_0, uses_importance=False)
encoder("TQ2_0", quantize_ternary, TQ2_0, uses_importance=False)
encoder("MXFP4", quantize_mxfp4, 0, 32, uses_importance=False, extra=largest_logs)
encoder("F16", quantize_half, F16, 1, uses_importance=False)
encoder("BF16", quantize_half, BF16, 1, uses_importance=False)
