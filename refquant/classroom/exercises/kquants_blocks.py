"""The layouts of assignment 5 and its data: Q4_K blocks, the scales of Q3_K.

A Q4_K block is 144 bytes for 256 weights: d, dmin (float16), 12 bytes of 6-bit scales and minima, 128 bytes of codes.
Weight i of sub-block j (32 weights) is d * scale[j] * code[i] - dmin * min[j].

Source: ggml-common.h, as `refquant.formats.gguf_blocks` has it; spelled out once more here, each function with the
switches that turn it into a typical mistake.
"""

import numpy as np

from refquant.classroom.exercises.rtn import draw


def six_bits(data, upper=True, swapped=False, exchanged=False):
    """Scales [8] and minima [8] from 12 bytes."""
    data = np.asarray(data, np.uint8)
    first_scales, first_mins, shared = data[:4], data[4:8], data[8:]
    low, high = (shared >> 4, shared & 15) if swapped else (shared & 15, shared >> 4)
    top_scales, top_mins = (data[4:8], data[:4]) if exchanged else (data[:4], data[4:8])
    scales = np.concatenate([first_scales & 63, low | (top_scales >> 6 << 4) * upper])
    mins = np.concatenate([first_mins & 63, high | (top_mins >> 6 << 4) * upper])
    return scales, mins


def codes(qs, swapped=False, interleaved=False):
    """Codes [256] from 128 bytes: each 32 bytes hold a sub-block in the low nibbles and the next in the high ones."""
    low, high = qs & 15, qs >> 4
    if swapped:
        low, high = high, low
    if interleaved:
        return np.stack([low, high], axis=1).ravel()
    return np.stack([low.reshape(4, 32), high.reshape(4, 32)], axis=1).ravel()


def decode(block, sign=-1, exchanged=False, order="<f2", use_dmin=True, unpack=six_bits, nibbles=codes, roll=0):
    """Weights float32 [256] of a block of 144 bytes."""
    d, dmin = np.asarray(block[:4], np.uint8).view(order).astype(np.float32)
    if exchanged:
        d, dmin = dmin, d
    scales, mins = (np.roll(each, roll).astype(np.float32) for each in unpack(block[4:16]))
    step, offset = np.repeat(d * scales, 32), np.repeat(mins * (dmin if use_dmin else 1), 32)
    return step * nibbles(block[16:]).astype(np.float32) + sign * offset


def pack_six_bits(scales, mins):
    """Turn 8 scales and 8 minima into the 12 bytes."""
    return np.concatenate(
        [scales[:4] | scales[4:] >> 4 << 6, mins[:4] | mins[4:] >> 4 << 6, scales[4:] & 15 | (mins[4:] & 15) << 4]
    )


def encode(w, stale=False):
    """Blocks uint8 [n, 144] of weights [n, 256]."""
    return np.stack([encode_block(row, stale) for row in w])


def encode_block(w, stale=False):
    """A block of 144 bytes: each sub-block's range, in steps of 6 bits; the codes chosen for what the file holds."""
    x = w.reshape(8, 32)
    low, high = np.minimum(x.min(axis=1), 0), np.maximum(x.max(axis=1), 0)
    wanted, least = (high - low) / 15, -low
    d, dmin = np.float16(wanted.max() / 63), np.float16(least.max() / 63)
    scales = np.clip(np.rint(wanted / np.float32(d or 1)), 0, 63).astype(np.uint8)
    mins = np.clip(np.rint(least / np.float32(dmin or 1)), 0, 63).astype(np.uint8)
    step, offset = (wanted, least) if stale else (np.float32(d) * scales, np.float32(dmin) * mins)
    step = np.where(step > 0, step, 1)[:, None]
    q = np.clip(np.rint((x + offset[:, None]) / step), 0, 15).astype(np.uint8).reshape(4, 2, 32)
    head = np.array([d, dmin], "<f2").view(np.uint8)
    return np.concatenate([head, pack_six_bits(scales, mins), (q[:, 0] | q[:, 1] << 4).ravel()])


def q3_scales(data, bias=32, swapped=False, upper="planes"):
    """The 16 signed scales of Q3_K from 12 bytes: low four bits in 8 bytes, upper two in 4, each minus 32."""
    data = np.asarray(data, np.uint8)
    nibbles = [data[:8] >> 4, data[:8] & 15] if swapped else [data[:8] & 15, data[:8] >> 4]
    two = np.stack([data[8:] >> shift & 3 for shift in (0, 2, 4, 6)])  # [4, 4]: plane, byte
    two = {"planes": two, "bytes": two.T, "none": two * 0}[upper].ravel()
    return (np.concatenate(nibbles) | two << 4).astype(np.int64) - bias


def q3_sub_block(x, scale_of=lambda extreme: extreme / -4):
    """Scale and codes 0..7 of 16 weights: the weight of largest magnitude gets code 0, which stands for -4."""
    scale = float(scale_of(x[np.argmax(np.abs(x))]))
    return scale, (np.clip(np.rint(x / scale), -4, 3) + 4).astype(np.uint8)


# ---- data


def small_bytes(rng):
    """Twelve bytes whose scales and minima are all below 16."""
    return (pack_six_bits(*rng.integers(0, 16, (2, 8)).astype(np.uint8)),)


def some_bytes(count):
    """A maker of `count` bytes."""
    return lambda rng: (rng.integers(0, 256, count).astype(np.uint8),)


def block(with_min):
    """A maker of a block of any codes, with reasonable d and dmin."""

    def make(rng):
        head = np.array([rng.uniform(1e-4, 1e-3), rng.uniform(1e-3, 1e-2) * with_min], "<f2").view(np.uint8)
        return (np.concatenate([head, rng.integers(0, 256, 140).astype(np.uint8)]),)

    return make


def weights(kind, n=8):
    """A maker of weights [n, 256], whose sub-blocks differ in spread and mean."""

    def make(rng):
        spread, mean = rng.uniform(0.3, 2, (n, 8)) * 0.05, rng.normal(size=(n, 8)) * 0.02
        w = rng.normal(size=(n, 256)) * np.repeat(spread, 32, axis=1) + np.repeat(mean, 32, axis=1)
        if kind == "positive":
            w = np.abs(w) + 0.05
        if kind == "zeros":
            w[:, :64] = 0
        return (w.astype(np.float32),)

    return make


def for_q3(sign):
    """A maker of 16 weights whose extreme has this sign; none of the quotients is near a tie."""

    def make(rng):
        x = rng.uniform(-0.05, 0.05, 16)
        x[rng.integers(16)] = sign * rng.uniform(0.06, 0.07)
        return x.astype(np.float32)

    return lambda rng: (draw(rng, make, lambda x: x / q3_sub_block(x)[0]),)
