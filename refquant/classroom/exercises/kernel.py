"""Assignment 6, a kernel: a matrix in int4 times a vector, first right, then fast.

    codes uint8 [n, k/2]: column 2c in the low nibble of byte c, 2c + 1 in the high one
    scales float32 [n, G], zeros uint8 [n, G], `size` columns of a row to a group
    y[i] = sum over j of (code[i, j] - zero) * scale * x[j]

Fast is judged twice. Bytes moved: the least that one product can move, plus twice what the call held beside it at its
peak (written, and read again); so a matrix decoded to floats shows. And a race, against decoding everything and then
multiplying in NumPy, measured in turns with it, in processor time, which other work on the machine hardly changes; the
least time of each side counts, since noise can only raise it, and where that is not enough for full points, more rounds
are run. Every timed call has a new vector, and its answer is checked.
"""

import contextlib
import ctypes
import os
import time
from functools import partial
from pathlib import Path

import numpy as np

from refquant.classroom.exercise import Case, CodeFailed, Exercise, Mistake, Output, compare

SIZE, GROUP = 4096, 128  # of the race: 8 MB of codes
ROUNDS, TRIES = 4, 3
FASTER = ((2.0, 1), (4.0, 2))  # times as fast as the baseline, points


def least_bytes(n, k, size, code_bytes=0.5, scales=True, zeros=True, vectors=True):
    """Bytes of codes, scales, zero-points, x and y, each moved once."""
    groups = n * k // size
    return int(n * k * code_bytes) + (4 * scales + zeros) * groups + 4 * (n + k) * vectors


def nibbles(codes, swapped=False, planes=False):
    """Codes [n, k]."""
    low, high = codes & 15, codes >> 4
    if swapped:
        low, high = high, low
    return np.concatenate([low, high], axis=1) if planes else np.stack([low, high], axis=2).reshape(len(codes), -1)


def decoded(codes, scales, zeros, size, unpack=nibbles):
    """The matrix, float32 [n, k]."""
    wide = [np.repeat(each.astype(np.float32), size, axis=1) for each in (scales, zeros)]
    return (unpack(codes).astype(np.float32) - wide[1]) * wide[0]


def matvec(codes, scales, zeros, size, x, **switches):
    """The baseline: decode, then multiply."""
    return decoded(codes, scales, zeros, size, **switches) @ x


# ---- data


def sizes(rng):
    """n, k, size."""
    size = int(rng.choice([32, 64, 128]))
    return 16 * int(rng.integers(16, 500)), size * int(rng.integers(8, 60)), size


def layer(n, k, size):
    """A maker of (codes, scales, zeros, size, x)."""

    def make(rng):
        codes = rng.integers(0, 256, (n, k // 2)).astype(np.uint8)
        scales = rng.uniform(0.005, 0.02, (n, k // size)).astype(np.float32)
        zeros = rng.integers(5, 11, (n, k // size)).astype(np.uint8)
        return codes, scales, zeros, size, rng.normal(size=k).astype(np.float32)

    return make


# ---- mistakes


def no_zero(codes, scales, zeros, size, x):
    """Codes times scales."""
    return matvec(codes, scales, zeros * 0, size, x)


def wrapped(codes, scales, zeros, size, x):
    """The subtraction in uint8."""
    left = nibbles(codes) - np.repeat(zeros, size, axis=1)
    return (left.astype(np.float32) * np.repeat(scales, size, axis=1)) @ x


def first_scale(codes, scales, zeros, size, x):
    """The first group's scale for the whole row."""
    return matvec(
        codes, np.broadcast_to(scales[:, :1], scales.shape), np.broadcast_to(zeros[:, :1], zeros.shape), size, x
    )


def stale_scale(codes, scales, zeros, size, x):
    """The scale of the group before."""
    before = np.maximum(np.arange(scales.shape[1]) - 1, 0)
    return matvec(codes, scales[:, before], zeros[:, before], size, x)


def half_size(codes, scales, zeros, size, x):
    """Groups counted in bytes."""
    group = np.minimum(np.arange(len(x)) // 2 // size, scales.shape[1] - 1)
    return ((nibbles(codes) - zeros[:, group].astype(np.float32)) * scales[:, group]) @ x


def last_dropped(codes, scales, zeros, size, x):
    """The last group left out."""
    short = x.copy()
    short[-size:] = 0
    return matvec(codes, scales, zeros, size, short)


# ---- measuring


def hold(function, *args):
    """The function of x alone; a function in another process gets the other arguments now, before any clock runs."""
    return function.hold(*args) if hasattr(function, "hold") else partial(function, *args)


def peak_growth(pid: int, call) -> int | None:
    """Bytes by which a process grew at its peak during `call()`; None where the system does not tell (not Linux)."""
    folder = Path(f"/proc/{pid}")
    if pid == os.getpid():  # free memory that a long-lived process still holds would hide what the call takes
        with contextlib.suppress(OSError, AttributeError):  # not glibc
            ctypes.CDLL(None).malloc_trim(0)
    try:
        (folder / "clear_refs").write_text("5")  # sets the peak to what is held now
        before = _kilobytes(folder, "VmRSS")
        call()
        return 1024 * max(0, _kilobytes(folder, "VmHWM") - before)
    except OSError:
        return None


def _kilobytes(folder, name):
    lines = (folder / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def measure(function, rng):
    """Bytes moved and the race: see the module."""
    names = [name for name, _ in MEASURED]
    try:
        found = list(_measure(function, rng))
    except CodeFailed as problem:
        found = [(str(problem), "")] * len(names)
    for (name, points), (problem, note) in zip(MEASURED, found, strict=True):
        yield name, points, problem, note


def _measure(function, rng):
    small = layer(64, 256, GROUP)(rng)
    function(*small)  # compiles
    *matrix, _ = layer(SIZE, SIZE, GROUP)(rng)
    decode = decoded(*matrix)
    call = hold(function, *matrix)
    seconds = {"student": [], "baseline": []}
    clocks = {"student": getattr(function, "clock", time.thread_time), "baseline": time.thread_time}

    def run(side, compute):
        x = rng.normal(size=SIZE).astype(np.float32)
        began = clocks[side]()
        y = compute(x)
        seconds[side].append(clocks[side]() - began)
        problem = compare((PRODUCT,), decode @ x, y)
        if problem:
            raise CodeFailed(f"in the race, {problem}")

    grown = peak_growth(getattr(function, "pid", os.getpid()), lambda: run("student", call))
    least, matrix_bytes = least_bytes(SIZE, SIZE, GROUP), 4 * SIZE * SIZE
    if grown is None:
        yield None, "not measured: this system does not tell"
    else:
        moved = f"{(least + 2 * grown) / 1e6:.1f} MB moved, the least is {least / 1e6:.1f} MB"
        much = grown > matrix_bytes / 4
        yield (f"{moved}: the decoded matrix was written to memory and read again" if much else None), moved
    best = lambda side: min(seconds[side])  # noqa: E731
    for _ in range(TRIES):
        for _ in range(ROUNDS):
            run("baseline", partial(matvec, *matrix))
            run("student", call)
        ratio = best("baseline") / best("student")
        if ratio >= FASTER[-1][0] or ratio < FASTER[0][0] / 4:
            break
    said = (
        f"{1e3 * best('student'):.2f} ms, {ratio:.1f} times as fast as the baseline's {1e3 * best('baseline'):.1f} ms"
    )
    for wanted, _ in FASTER:
        yield (None if ratio >= wanted else f"{said}; {wanted:g} times are wanted"), said


PRODUCT = Output("y", 1e-4, "largest")
MEASURED = (
    ("bytes moved: no decoded matrix in memory", 3),
    *((f"race: {wanted:g} times as fast as decoding first", points) for wanted, points in FASTER),
)
NIBBLES_HINT = "nibble order: column 2c is the low nibble of byte c, column 2c + 1 the high one"
MATVEC_MISTAKES = (
    Mistake(NIBBLES_HINT, partial(matvec, unpack=partial(nibbles, swapped=True))),
    Mistake(
        "the two nibbles of a byte are neighbours, not half a row apart",
        partial(matvec, unpack=partial(nibbles, planes=True)),
    ),
    Mistake("the zero-point must be subtracted from the code", no_zero),
    Mistake("code - zero in uint8 wraps around below 0: convert to a signed type or to float first", wrapped),
    Mistake("the first group's scale serves the whole row: each group has its own", first_scale),
    Mistake("stale group scale: each group is multiplied with the scale of the one before", stale_scale),
    Mistake("size counts columns, not bytes: a group is size / 2 bytes", half_size),
    Mistake("the last group is missing", last_dropped),
)

EXERCISES = (
    Exercise(
        "kernel.least_bytes",
        (Output("bytes"),),
        (Case("any shape", 3, sizes),),
        least_bytes,
        (
            Mistake("two codes share a byte: n k / 2 bytes", lambda n, k, size: least_bytes(n, k, size, code_bytes=1)),
            Mistake(
                "that counts float32 weights: the codes take half a byte each",
                lambda n, k, size: least_bytes(n, k, size, code_bytes=4),
            ),
            Mistake(
                "the zero-points are read, too: one byte a group",
                lambda n, k, size: least_bytes(n, k, size, zeros=False),
            ),
            Mistake(
                "the scales are read, too: four bytes a group", lambda n, k, size: least_bytes(n, k, size, scales=False)
            ),
            Mistake(
                "x is read and y is written: 4 bytes for each of k + n numbers",
                lambda n, k, size: least_bytes(n, k, size, vectors=False),
            ),
            Mistake("codes alone: scales, zero-points, x and y move as well", lambda n, k, size: n * k // 2),
        ),
        score=lambda args, got: f"{got / 1e6:.2f} MB, {got * 8 / args[0] / args[1]:.3f} bits per weight",
    ),
    Exercise(
        "kernel.matvec",
        (PRODUCT,),
        (
            Case("one group a row", 2, layer(24, 64, 64)),
            Case("several groups", 3, layer(16, 384, 64)),
            Case("small groups", 1, layer(8, 96, 8)),
        ),
        matvec,
        MATVEC_MISTAKES,
    ),
    Exercise(
        "kernel.fast",
        (PRODUCT,),
        (Case("one group a row", 2, layer(40, 128, 128)), Case("several groups", 3, layer(24, 512, 64))),
        matvec,
        MATVEC_MISTAKES,
        measure=measure,
        measured=MEASURED,
    ),
)
