"""matmul and matmul_int8 of the uniform grids, `int4-g128` and its relatives.

Must move, 4096 x 4096 weights of int4-g128, one token: 8,716,288 bytes: at 18 GB/s 0.48 ms. Must do, 128 weights: a
shift, two masks, two instructions for 128 products with activations of one byte (VNNI), or six and two shifts with
three; a conversion, a multiplication and addition: less than any block format needs, so that the memory is the floor.

- **matmul_int8**, codes of 4 and 8 bits in groups of multiples of 64, refquant's own definition: the activations of a
  token are rounded in runs of 128, or of 64 where group or row is no multiple of 128: scale = max |x| / 127, kept in
  float32, code = x / scale to the nearest (`activations`). Then y = sum decode(q) * decode(x), where the sum over a run
  is one of integers.
- **matmul, a token or a few**: codes of 4 bits in such groups by the same kernel, with activations of 24 bits
  (`products`). Others: codes that share a byte are neighbours in the row, so a vector of bytes gives every second code
  with one shift. Instead of putting them in order, the activations are put out of order, once. Codes of 3 bits come
  from two words, sixteen at a time.
- **matmul, many tokens**: decode a panel of rows, multiply it (`gemm`).

The zero-point meets the sum of the group's decoded activations, once a group: minus zero * sum(x). The scales of a row
come first, sixteen groups at a time where they can; then all its runs in one flat loop, whose body is 21 instructions
for 128 codes of 4 bits and activations of 24. With a loop over groups around it the same took 49. The last group of a
row may be short: the width of SmolLM2 is four and a half groups of 128.
"""

import numpy as np

from refquant import ops
from refquant.errors import BadInput
from refquant.grids import as_grid
from refquant_kernels.cpu.activations import IN_ORDER, add_groups, in_order, rounded, starts_of, well_rounded
from refquant_kernels.cpu.compile import PRODUCT, aligned, aligned_empty, in_pieces, inlined, specialized
from refquant_kernels.cpu.decode import four_bits_minus_8, sixteen_halves, two_bits_minus_2
from refquant_kernels.cpu.gemm import by_panels
from refquant_kernels.cpu.int_grids import as_stored, decode_rows, scale_at, zero_at
from refquant_kernels.cpu.machine import (
    SIGNED_EXCESS,
    TURN,
    dot_bytes,
    dot_signed,
    load_words,
    load_words_twice,
    prefetch,
    sum_lanes,
    word_at,
)
from refquant_kernels.cpu.matmul_int8 import run_of_grid
from refquant_kernels.cpu.products import AHEAD, FEW, NIBBLES, in_halves
from refquant_kernels.cpu.simd import (
    LANES,
    fma,
    lane_numbers,
    load,
    select,
    splat,
    splat_int,
    store,
    to_float,
)

BITS, RUN, DIGITS = None, None, None  # given by `specialized`
EVEN_FIRST = {run: np.arange(run).reshape(-1, 2).T.reshape(-1) for run in (64, 128)}  # as the halves of bytes come
STEP = {2: 64, 3: 16, 4: 32, 8: 16}  # codes that `_dot_rows` takes at a time


@inlined
def of_two_words(first, second, bits):
    """I: sixteen numbers of so many bits, eight in each of two words, the lowest first."""
    lane = lane_numbers()
    words = select(lane < 8, splat_int(np.int32(first)), splat_int(np.int32(second)))
    return (words >> ((lane & 7) * bits)) & ((1 << bits) - 1)


@inlined
def sixteen_zeros(zeros, row, bits, g):
    """F: zero-points of sixteen groups from g on, of 4 or 8 bits; otherwise as `zero_at`."""
    if zeros.size == 0:
        return splat(np.float32(1 << (bits - 1)))
    if bits == 8:
        return to_float(load(zeros, row + g))
    return to_float(of_two_words(word_at(zeros, row + g // 2), word_at(zeros, row + g // 2 + 4), 4))


def _rows(x, starts, scale_x, sums, data, scales, width, zeros, runs, first, last, out):
    """out[t, r] for all tokens t and rows first .. last - 1; `runs` of activations to a group, fewer to the last.

    x: uint8 [m, k DIGITS], first the even, then the odd ones of each run where codes have 4 bits; starts int32
    [m, k / RUN 16], what takes the middle code from all codes (so that the zero-point adds little); scale_x
    [m, k / RUN]; sums [m, G], of the decoded activations.
    """
    count, groups, middle = scale_x.shape[1], sums.shape[1], np.float32(1 << (BITS - 1))
    run_bytes, zero_bytes = RUN * BITS // 8, (groups * BITS + 7) // 8
    together = groups // LANES * LANES if width == 2 and runs == 1 else 0
    both = np.empty(count, np.float32)  # scales of the row's groups times those of the runs
    for t in range(x.shape[0]):
        tokens, starts_of_token, scale_of_token, sums_of_token = x[t], starts[t], scale_x[t], sums[t]
        for r in range(first, last):
            total, rest, zero_part = splat(0.0), splat(0.0), np.float32(0)
            for g in range(0, together, LANES):
                scale = sixteen_halves(scales, 2 * (r * groups + g))
                zero = sixteen_zeros(zeros, r * zero_bytes, BITS, g)
                rest = fma(scale * (zero - middle), load(sums_of_token, g), rest)
                store(both, g, scale * load(scale_of_token, g))
            for g in range(together, groups):
                scale, zero = scale_at(scales, width, r * groups + g), zero_at(zeros, r * zero_bytes, BITS, g)
                zero_part += scale * (zero - middle) * sums_of_token[g]
                for run in range(g * runs, min((g + 1) * runs, count)):
                    both[run] = scale * scale_of_token[run]
            at, column = r * count * run_bytes, 0
            for run in range(count):
                for line in range(0, run_bytes, 64):
                    prefetch(data, at + AHEAD + line)
                products = splat_int(0)
                if BITS == 8:
                    for i in range(0, RUN, 64):
                        codes = load_words(data, at + i) ^ TURN
                        products = dot_signed(products, codes, load_words(tokens, column + i))
                elif RUN == 128:
                    codes = load_words(data, at)
                    low, high = codes & NIBBLES, (codes >> 4) & NIBBLES
                    for i in range(column, column + 64 * DIGITS, 64):
                        products = dot_bytes(products << 8, low, load_words(tokens, i))
                        products = dot_bytes(products, high, load_words(tokens, i + 64 * DIGITS))
                else:
                    codes = in_halves(load_words_twice(data, at), 0, 4) & NIBBLES
                    for i in range(column, column + 64 * DIGITS, 64):
                        products = dot_bytes(products << 8, codes, load_words(tokens, i))
                products = products + load(starts_of_token, LANES * run)
                total = fma(to_float(products), splat(both[run]), total)
                at, column = at + run_bytes, column + RUN * DIGITS
            out[t, r] = sum_lanes(total - rest) - zero_part


ROWS = {
    (bits, run, digits): specialized(
        _rows, f"matmul{'_int8' if digits == 1 else ''}_int{bits}_{run}", BITS=bits, RUN=run, DIGITS=digits
    )
    for bits, digits in ((4, 1), (4, 3), (8, 1))
    for run in (64, 128)
}


def few_tokens(tokens, stored, out, digits) -> bool:
    """Fill out [m, n] with the product of tokens [m, k], of so many bytes each; False where those are too few."""
    data, scales, width, zeros, _, size, bits = stored
    k, n = tokens.shape[1], out.shape[1]
    run = run_of_grid(size, k)
    whole, scale_x = rounded(tokens, run, digits)
    if digits > 1 and not well_rounded(scale_x):
        return False
    of_groups = aligned_empty((len(tokens), -(-k // size)))
    add_groups(whole, scale_x, run, size, of_groups)
    ordered, fours = in_order(whole, EVEN_FIRST[run] if bits == 4 else IN_ORDER, run if bits == 4 else 64, digits)
    starts, kernel = starts_of(fours, run // 64, -8 if bits == 4 else -SIGNED_EXCESS), ROWS[bits, run, digits]

    def piece(first, last):
        kernel(ordered, starts, scale_x, of_groups, data, scales, width, zeros, size // run, first, last, out)

    in_pieces(piece, n, max(1, PRODUCT // k))
    return True


@ops.fast_path("matmul_int8", "int", backend="numba")
def matmul_int8(x, q):
    """X [..., k] -> float32 [..., n]; `BadInput` for a grid that it does not handle (see above)."""
    grid, (n, k) = as_grid(q.format), q.shape
    if grid.bits not in (4, 8) or (grid.group_size or k) % 64 or k % 64 or "g_idx" in q.arrays:
        raise BadInput(
            f"{q.format} {list(q.shape)}: activations of 8 bits need a grid of 4 or 8 bits, a width and groups that "
            "are multiples of 64, and no g_idx"
        )
    tokens = np.asarray(x, np.float32).reshape(-1, k)
    out = np.empty((len(tokens), n), np.float32)
    few_tokens(tokens, as_stored(q), out, digits=1)
    return out.reshape(*x.shape[:-1], n)


@inlined
def three_bits(data, at):
    """F: sixteen codes of 3 bits from byte `at`, two words of eight; minus 4."""
    return to_float(of_two_words(word_at(data, at), word_at(data, at + 2) >> 8, 3) - 4)


def _dot_rows(x, sums, data, scales, width, zeros, size, first, last, out):
    """out[t, r] for all tokens and rows first .. last - 1; groups of whole vectors of codes, the last may be short.

    x [m, k] with its columns out of order (`out_of_order`), but for codes of 3 bits; sums [m, G], of x over each group.
    The middle code is taken from each code, so that what the zero-point adds is small beside the sum.
    """
    k, groups, planes = x.shape[1], sums.shape[1], 8 // BITS
    row_bytes, group_bytes, zero_bytes = k * BITS // 8, size * BITS // 8, (groups * BITS + 7) // 8
    for t in range(x.shape[0]):
        tokens, sums_of_token = x[t], sums[t]
        for r in range(first, last):
            total, zero_part = splat(0.0), np.float32(0)
            for g in range(groups):
                start, column = r * row_bytes + g * group_bytes, g * size
                end = min(start + group_bytes, (r + 1) * row_bytes)
                even, odd = splat(0.0), splat(0.0)
                for b in range(start, end, 2 * BITS if BITS == 3 else LANES):
                    prefetch(data, b + AHEAD)
                    if BITS == 3:
                        even, odd = odd, fma(three_bits(data, b), load(tokens, column), even)
                        column += LANES
                        continue
                    codes = load(data, b)
                    if BITS == 8:
                        even, odd = odd, fma(to_float(codes - 128), load(tokens, column), even)
                    elif BITS == 4:
                        even = fma(four_bits_minus_8(codes), load(tokens, column), even)
                        odd = fma(four_bits_minus_8(codes >> 4), load(tokens, column + LANES), odd)
                    else:
                        even = fma(two_bits_minus_2(codes), load(tokens, column), even)
                        odd = fma(two_bits_minus_2(codes >> 2), load(tokens, column + LANES), odd)
                        even = fma(two_bits_minus_2(codes >> 4), load(tokens, column + 2 * LANES), even)
                        odd = fma(two_bits_minus_2(codes >> 6), load(tokens, column + 3 * LANES), odd)
                    column += LANES * planes
                scale = scale_at(scales, width, r * groups + g)
                total = fma(splat(scale), even + odd, total)
                zero = zero_at(zeros, r * zero_bytes, BITS, g) - np.float32(1 << (BITS - 1))
                zero_part += scale * zero * sums_of_token[g]
            out[t, r] = sum_lanes(total) - zero_part


DOT_ROWS = {bits: specialized(_dot_rows, f"matmul_int{bits}", BITS=bits) for bits in STEP}


def out_of_order(x, planes):
    """Columns of x [m, k] as sixteen lanes of `planes` codes give them: the lanes' first codes, then their second."""
    m, k = x.shape
    return x.reshape(m, k // (LANES * planes), LANES, planes).swapaxes(2, 3).reshape(m, k)


def prepare(q):
    """Return matmul as a function of x [..., k] alone: float32 [..., n]."""
    stored = codes, scales, width, zeros, g_idx, size, bits = as_stored(q)
    n, k = q.shape
    step, starts = STEP.get(bits), np.arange(0, k, size)
    in_registers = step and size % step == 0 and k % step == 0 and not g_idx.size
    in_bytes = in_registers and bits == 4 and size % 64 == 0 and k % 64 == 0
    dot, planes = DOT_ROWS.get(bits), 1 if bits == 3 else 8 // bits

    def decode(first, last, panel):
        decode_rows(codes, scales, width, zeros, g_idx, k, size, bits, first, last, panel, first)

    def multiply(x):
        tokens = np.ascontiguousarray(x, np.float32).reshape(-1, k)
        m = len(tokens)
        out = np.empty((m, n), np.float32)
        if in_bytes and 0 < m <= FEW and few_tokens(tokens, stored, out, digits=3):
            pass
        elif in_registers and not in_bytes and 0 < m <= FEW:
            sums = np.add.reduceat(tokens, starts, axis=1, dtype=np.float64).astype(np.float32)
            ordered = aligned(out_of_order(tokens, planes))
            in_pieces(
                lambda a, b: dot(ordered, sums, codes, scales, width, zeros, size, a, b, out), n, max(1, PRODUCT // k)
            )
        elif m:
            by_panels(tokens, n, decode, out)
        return out.reshape(*np.shape(x)[:-1], n)

    return multiply


@ops.fast_path("matmul", "int", backend="numba")
def matmul(x, q):
    """X [..., k] -> float32 [..., n]."""
    return prepare(q)(x)


ops.find_op("matmul", "int").prepare["numba"] = prepare
