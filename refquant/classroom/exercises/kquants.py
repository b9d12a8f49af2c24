"""Assignment 5, k-quants: Q4_K decoded by hand, then encoded; the scales of Q3_K.

Right answers: the layouts in `kquants_blocks`. Of the many right encodings, any is taken whose error is about that of
plain minimum and maximum in each sub-block.
"""

import numpy as np

from refquant.classroom.exercise import Case, Exercise, Mistake, Output, kind_of
from refquant.classroom.exercises.kquants_blocks import (
    block,
    codes,
    decode,
    encode,
    for_q3,
    q3_scales,
    q3_sub_block,
    six_bits,
    small_bytes,
    some_bytes,
    weights,
)

SLACK = 1.02  # a student's encoder may have this much of the error of the plain one

# ---- encoding has many right answers


def squared_error(w, data, **switches):
    """Mean squared error of blocks, read as the layout says or with a mistake."""
    with np.errstate(all="ignore"):
        read = np.stack([decode(block, **switches) for block in data])
        error = np.square(read.astype(np.float64) - w).mean()
    return error if np.isfinite(error) else np.inf


def as_blocks(got, n):
    """The answer as uint8 [n, 144], or None."""
    data = np.asarray(got)
    right = data.shape == (n, 144) and data.dtype.kind in "iu" and (data >= 0).all() and (data < 256).all()
    return data.astype(np.uint8) if right else None


def encoding(args, got):
    """What is wrong with a student's blocks."""
    (w,) = args
    data = as_blocks(got, len(w))
    if data is None:
        return f"blocks: expected uint8 [{len(w)}, 144], got {kind_of(got)}"
    error, plain = squared_error(w, data), squared_error(w, encode(w))
    if error <= SLACK * plain:
        return None
    read = np.stack([decode(block) for block in data])
    off = np.nan_to_num(np.abs(read - w), nan=np.inf)
    row, i = np.unravel_index(np.argmax(off), off.shape)
    return (
        f"squared error {error / plain:.3g} times that of each sub-block's minimum and maximum, at most {SLACK} is "
        f"right; the worst weight, [{row}, {i}]: expected about {w[row, i]:.5g}, decoded {read[row, i]:.5g}"
    )


def reads_well(**switches):
    """Whether the block is right for a decoder with this mistake."""
    return lambda args, got: (
        squared_error(args[0], as_blocks(got, 8), **switches) <= 1.5 * squared_error(*args, encode(*args))
    )


def encode_score(args, got):
    """Error relative to plain rounding, and to ggml's search."""
    from refquant import dequantize, quantize

    (w,) = args
    searched = np.square(dequantize(quantize(w, "Q4_K")) - w).mean()
    error, plain = squared_error(w, as_blocks(got, len(w))), squared_error(w, encode(w))
    return f"4.5 bits per weight; error {error / plain:.3f} of RTN's, {error / searched:.3f} of ggml's"


def swapped_codes(qs):
    """High nibbles first."""
    return codes(qs, swapped=True)


def interleaved_codes(qs):
    """Two neighbours in a byte."""
    return codes(qs, interleaved=True)


def no_upper_bits(data):
    """Upper bits of the later scales lost."""
    return six_bits(data, upper=False)


def swapped_scales(data):
    """Scales and minima exchanged in the shared bytes."""
    return six_bits(data, swapped=True)


NIBBLES_HINT = "nibble order: the low nibbles of 32 bytes are the earlier sub-block, the high nibbles the next"
NEIGHBOURS_HINT = "a byte does not hold two neighbours: its nibbles lie 32 weights apart"
UPPER_HINT = "the upper two bits of scales 4..7 are in bits 6 and 7 of bytes 0..3 (of the minima: bytes 4..7)"
SHARED_HINT = "in bytes 8..11 the low nibble belongs to the scale, the high nibble to the minimum"

EXERCISES = (
    Exercise(
        "kquants.six_bits",
        (Output("scales"), Output("mins")),
        (Case("values below 16", 1, small_bytes), Case("all six bits", 2, some_bytes(12))),
        six_bits,
        (
            Mistake(UPPER_HINT, no_upper_bits),
            Mistake(SHARED_HINT, swapped_scales),
            Mistake(
                "each later scale takes its upper bits from a scale's byte, each minimum from a minimum's",
                lambda b: six_bits(b, exchanged=True),
            ),
            Mistake(
                "bytes 0..7 hold six bits of their own: mask with 63",
                lambda b: tuple(
                    np.concatenate([raw, each[4:]]) for raw, each in zip((b[:4], b[4:8]), six_bits(b), strict=True)
                ),
            ),
            Mistake("scales and minima are exchanged: bytes 0..3 are scales", lambda b: six_bits(b)[::-1]),
        ),
    ),
    Exercise(
        "kquants.codes",
        (Output("codes"),),
        (Case("128 bytes", 3, some_bytes(128)),),
        codes,
        (
            Mistake(NIBBLES_HINT, swapped_codes),
            Mistake(NEIGHBOURS_HINT, interleaved_codes),
            Mistake(
                "planes of 32, not of 128: after 32 low nibbles come the high nibbles of the same 32 bytes",
                lambda qs: np.concatenate([qs & 15, qs >> 4]),
            ),
            Mistake("nibbles in the wrong order, and of neighbours", lambda qs: codes(qs, True, True)),
        ),
    ),
    Exercise(
        "kquants.decode",
        (Output("weights", 1e-6, "largest"),),
        (Case("any block", 3, block(True)), Case("no minimum: dmin is 0", 1, block(False))),
        decode,
        (
            Mistake("the minimum is subtracted: it is stored as a positive number", lambda b: decode(b, sign=1)),
            Mistake("d and dmin are exchanged: d comes first", lambda b: decode(b, exchanged=True)),
            Mistake("float16 is little-endian in the file", lambda b: decode(b, order=">f2")),
            Mistake("the integer minimum must be multiplied by dmin", lambda b: decode(b, use_dmin=False)),
            Mistake("the minimum was left out", lambda b: decode(b, sign=0)),
            Mistake(NIBBLES_HINT, lambda b: decode(b, nibbles=swapped_codes)),
            Mistake(NEIGHBOURS_HINT, lambda b: decode(b, nibbles=interleaved_codes)),
            Mistake(UPPER_HINT, lambda b: decode(b, unpack=no_upper_bits)),
            Mistake(SHARED_HINT, lambda b: decode(b, unpack=swapped_scales)),
            Mistake(
                "stale scales: sub-block j is decoded with the scale of the one before", lambda b: decode(b, roll=1)
            ),
        ),
    ),
    Exercise(
        "kquants.encode",
        (Output("blocks"),),
        (
            Case("weights of both signs", 3, weights("any")),
            Case("only positive weights", 1, weights("positive")),
            Case("sub-blocks of zeros", 1, weights("zeros")),
        ),
        differs=encoding,
        mistakes=(
            Mistake(NIBBLES_HINT, shown=reads_well(nibbles=swapped_codes)),
            Mistake(NEIGHBOURS_HINT, shown=reads_well(nibbles=interleaved_codes)),
            Mistake(UPPER_HINT, shown=reads_well(unpack=no_upper_bits)),
            Mistake(SHARED_HINT, shown=reads_well(unpack=swapped_scales)),
            Mistake("d and dmin are exchanged: d comes first", shown=reads_well(exchanged=True)),
            Mistake("the minimum is stored positive: the decoder subtracts it", shown=reads_well(sign=1)),
            Mistake(
                "the codes were chosen for the exact scale; choose them for d * scale and dmin * min as stored",
                lambda w: encode(w, stale=True),
            ),
            Mistake(
                "every sub-block of a block has the same scale: each of the eight has its own",
                shown=lambda args, got: all(len({*six_bits(b[4:16])[0].tolist()}) == 1 for b in as_blocks(got, 8)),
            ),
        ),
        score=encode_score,
    ),
    Exercise(
        "kquants.q3_scales",
        (Output("scales"),),
        (Case("any 12 bytes", 2, some_bytes(12)),),
        q3_scales,
        (
            Mistake("the scales are signed, stored 32 higher: subtract 32", lambda b: q3_scales(b, bias=0)),
            Mistake(
                "low nibbles of the first 8 bytes are scales 0..7, high nibbles 8..15",
                lambda b: q3_scales(b, swapped=True),
            ),
            Mistake(
                "two bits at a time: bits 0, 1 of bytes 8..11 belong to scales 0..3, bits 2, 3 to 4..7",
                lambda b: q3_scales(b, upper="bytes"),
            ),
            Mistake("the upper two bits, in bytes 8..11, are missing", lambda b: q3_scales(b, upper="none")),
            Mistake(
                "the scales are signed: cast to a signed type before subtracting 32, or uint8 wraps around",
                lambda b: q3_scales(b).astype(np.uint8),
            ),
        ),
    ),
    Exercise(
        "kquants.q3_sub_block",
        (Output("scale", 1e-5), Output("codes")),
        (Case("the extreme is negative", 1, for_q3(-1)), Case("the extreme is positive", 2, for_q3(1))),
        q3_sub_block,
        (
            Mistake(
                "that scale is never negative. The codes run from -4 to 3: whichever sign the extreme has, it gets -4",
                lambda x: q3_sub_block(x, lambda extreme: abs(extreme) / 4),
            ),
            Mistake(
                "the extreme gets code -4, the longer side: divide it by -4",
                lambda x: q3_sub_block(x, lambda extreme: extreme / 4),
            ),
            Mistake(
                "the extreme gets -4, not 3: the longer side of the grid has one code more",
                lambda x: q3_sub_block(x, lambda extreme: extreme / 3),
            ),
            Mistake(
                "that is symmetric to 3: one code of eight is wasted",
                lambda x: q3_sub_block(x, lambda extreme: abs(extreme) / 3),
            ),
            Mistake(
                "codes are stored 4 higher, 0 to 7", lambda x: (q3_sub_block(x)[0], q3_sub_block(x)[1].astype(int) - 4)
            ),
            Mistake(
                "the largest weight is not the weight of largest magnitude",
                shown=lambda args, got: np.isclose(got[0], args[0].max() / -4, rtol=1e-5),
            ),
        ),
    ),
)
