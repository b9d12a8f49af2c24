"""Products of whole matrices, which prefill and GPTQ spend their time on: `by_panels` and `add_product`.

4096 x 4096 weights, 512 tokens: 17.2 GFLOP; a core with two units of 512 bits does 64 a cycle: at 4 GHz 256 GFLOP/s, so
67 ms on one core. Must move: weights and activations once, little beside that.

BLAS is what does this everywhere else. But OpenBLAS, which comes with NumPy, and MKL, which comes with torch, take
their AVX2 kernels for AMD's processors with AVX-512, and so do half of what these can. Here is what they leave out:

- **The one idea**, a tile of the result in registers: 12 rows of A times 32 columns of B are 24 vectors of sums. A step
  of the loop loads 2 vectors of B and one number for each row of A: 14 loads for 24 products of vectors, where a plain
  loop needs 48. The tile is built of LLVM's vectors directly, since its 24 variables have no names one wants to read.
- **B is packed** so that what the tile reads lies in one stream: for every 32 columns one row of them after the other.
  It comes from the second cache, and is asked for in advance: without that Intel's processors lose a third.
- **A** is copied, 192 rows by 384 columns, for rows a multiple of 4096 bytes apart would push each other out of the
  cache.
- **Prefill** decodes the weights of some rows and multiplies them while they are in the cache; each thread its own
  rows, and no thread waits for another before the end.

Where there are no registers of 512 bits, BLAS does the same. Any number of the result is summed by one thread, in an
order that depends on nothing but the depth.
"""

from dataclasses import dataclass

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from refquant_kernels.cpu.compile import aligned_empty, helper, in_pieces, kernel
from refquant_kernels.cpu.machine import _call, build_prefetch, features, prefetch
from refquant_kernels.cpu.simd import _broadcast, _function

HAS_TILES = "avx512f" in features()
VECTOR = 64  # bytes
ROWS = 12  # of a tile
DEPTH = 384  # columns of A, rows of B, that are gone through before a tile's sums are put down: 48 KiB of B
BLOCK = 16 * ROWS  # rows of A copied at a time, 288 KiB of float32
APART = DEPTH + 16  # numbers from one copied row to the next: no power of two, which would share a place in the cache
WIDE = 512  # columns of B packed at a time: 8 MB where the depth is 4096
NEAR = 64  # rows of a packed panel, 8 KiB
AHEAD = 4  # rows of A that are asked for in advance
SOON = 16  # vectors of B that are
PANEL = 1 << 19  # weights decoded for one call of BLAS: 2 MB
PIECE = 1 << 16  # weights to decode that are worth handing to another thread
WORTH, WORK = 1 << 24, 1 << 21  # multiplications for which other threads are woken; that one takes at a time


def _tile(vectors):
    """Build tile(a, at, b, from, depth, c, to, stride)."""

    def build(context, builder, sig, a, at, b, start, depth, c, to, stride):
        element = context.get_value_type(sig.args[0].dtype)
        size = sig.args[0].dtype.bitwidth // 8
        lanes, number = VECTOR // size, ir.IntType(64)
        vector, zero = ir.VectorType(element, lanes), ir.Constant(ir.VectorType(element, lanes), [0.0] * lanes)
        fma = f"llvm.fmuladd.v{lanes}f{8 * size}"

        def place(array, index, kind):
            data = context.make_array(kind)(context, builder, array).data
            return builder.gep(data, [index])

        def vector_at(pointer, index):
            return builder.bitcast(builder.gep(pointer, [index]), vector.as_pointer())

        rows_of_a, panel, corner = place(a, at, sig.args[0]), place(b, start, sig.args[2]), place(c, to, sig.args[5])
        sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(vectors)] for _ in range(ROWS)]
        for each in (one for row in sums for one in row):  # a tile may be built in a loop
            builder.store(zero, each)
        with cgutils.for_range(builder, depth) as loop:
            first = builder.mul(loop.index, ir.Constant(number, lanes * vectors))
            columns = []
            for v in range(vectors):
                build_prefetch(builder, vector_at(panel, builder.add(first, ir.Constant(number, lanes * (v + SOON)))))
                column = builder.load(vector_at(panel, builder.add(first, ir.Constant(number, lanes * v))))
                column.align = VECTOR
                columns.append(column)
            for row in range(ROWS):
                index = builder.add(loop.index, ir.Constant(number, APART * row))
                one = _broadcast(builder, builder.load(builder.gep(rows_of_a, [index])), lanes)
                for total, column in zip(sums[row], columns, strict=True):
                    builder.store(_call(builder, fma, vector, one, column, builder.load(total)), total)
        for row in range(ROWS):
            for v in range(vectors):
                index = builder.add(builder.mul(stride, ir.Constant(number, row)), ir.Constant(number, lanes * v))
                target = vector_at(corner, index)
                before = builder.load(target)
                before.align = VECTOR
                builder.store(builder.fadd(before, builder.load(sums[row][v])), target).align = VECTOR
        return context.get_dummy_value()

    index = types.intp
    return _function(types.void, [None, index, None, index, index, None, index, index], build)


tile, narrow_tile = _tile(2), _tile(1)
tile.__doc__ = """tile(a, at, b, from, depth, c, to, stride): to twelve rows of c add those of a times b.

Rows of a are APART numbers apart, those of c `stride`; b has rows of two vectors, `narrow_tile` of one. All begin at
multiples of 64 bytes but a.
"""


def _copy(context, builder, sig, source, start, target, at, count):
    pointers = [
        builder.gep(context.make_array(kind)(context, builder, array).data, [index])
        for kind, array, index in ((sig.args[2], target, at), (sig.args[0], source, start))
    ]
    cgutils.memcpy(builder, *pointers, count)
    return context.get_dummy_value()


copy = _function(types.void, [None, types.intp, None, types.intp, types.intp], _copy)
copy.__doc__ = """copy(source, i, target, j, count): so many elements."""


@kernel()
def pack_rows(x, start, stride, count, depth, lanes, packed):
    """Pack the transpose of x, `count` rows of `depth` numbers, `stride` apart in a flat array."""
    for first in range(0, count, 2 * lanes):
        width = 2 * lanes if count - first > lanes else lanes
        filled, at = min(width, count - first), first * depth
        for some in range(0, depth, NEAR):  # which stay in the cache until all lanes are written
            for lane in range(width):
                row = start + (first + lane) * stride
                for i in range(some, min(depth, some + NEAR)):
                    packed[at + i * width + lane] = x[row + i] if lane < filled else 0


@dataclass(frozen=True)
class Packed:
    """B [depth, n] as the kernels want it; where BLAS takes their place, as it is."""

    data: np.ndarray
    depth: int
    n: int

    @property
    def lanes(self) -> int:
        """Numbers in a vector."""
        return VECTOR // self.data.itemsize

    @property
    def columns(self) -> int:
        """Columns, with those that fill the last vector."""
        return -(-self.n // self.lanes) * self.lanes


def empty(depth: int, n: int, dtype) -> Packed:
    """Room for a matrix to be packed."""
    lanes = VECTOR // np.dtype(dtype).itemsize
    return Packed(aligned_empty((depth * -(-n // lanes) * lanes,), dtype), depth, n)


def pack(B: np.ndarray, dtype) -> Packed:
    """B [depth, n], turned into `dtype`: for every two vectors of columns (one, where fewer are left) its rows."""
    if not HAS_TILES:
        return Packed(B.astype(dtype), *B.shape)
    packed = empty(*B.shape, dtype)
    for first in range(0, packed.n, 2 * packed.lanes):
        last = min(first + 2 * packed.lanes, packed.columns)
        panel = packed.data[first * packed.depth : last * packed.depth].reshape(packed.depth, last - first)
        panel[:, : packed.n - first] = B[:, first:last]
        panel[:, packed.n - first :] = 0
    return packed


def pack_transposed(B: np.ndarray) -> Packed:
    """Pack the transpose of B [n, depth], whose rows are each in one piece."""
    if not HAS_TILES:
        return Packed(B.T, *B.T.shape)
    packed = empty(*B.T.shape, B.dtype)
    flat, stride = flat_rows(B)
    pack_rows(flat, 0, stride, packed.n, packed.depth, packed.lanes, packed.data)
    return packed


@helper
def block_product(A, start, stride, rows, packed, depth, columns, lanes, a, c):
    """Fill c, rows of `columns`, with A times what is packed; a: room for the copy."""
    padded = -(-rows // ROWS) * ROWS
    c[: padded * columns] = 0
    for p in range(0, depth, DEPTH):
        deep = min(DEPTH, depth - p)
        for r in range(rows):
            at = start + r * stride + p
            for i in range(0, deep, lanes):
                prefetch(A, at + AHEAD * stride + i)
            copy(A, at, a, r * APART, deep)
        for r in range(rows, padded):  # no one looks at what comes of them, but denormal numbers would be slow
            a[r * APART : r * APART + deep] = 0
        for first in range(0, columns, 2 * lanes):
            at = first * depth
            for r in range(0, padded, ROWS):
                if columns - first > lanes:
                    tile(a, r * APART, packed, at + 2 * lanes * p, deep, c, r * columns + first, columns)
                else:
                    narrow_tile(a, r * APART, packed, at + lanes * p, deep, c, r * columns + first, columns)


@kernel()
def product_rows(A, stride, packed, depth, n, lanes, a, c, first, last, out, apart, sign, fresh):
    """To rows first .. last - 1 of out, or if `fresh` to 0, add `sign` times A times what is packed.

    A and out are flat, their rows `stride` and `apart` numbers apart.
    """
    columns = -(-n // lanes) * lanes
    for block in range(first, last, BLOCK):
        rows = min(BLOCK, last - block)
        block_product(A, block * stride, stride, rows, packed, depth, columns, lanes, a, c)
        for r in range(rows):
            target, part = out[(block + r) * apart :][:n], c[r * columns :][:n]
            if fresh:
                for i in range(n):
                    target[i] = sign * part[i]
            else:
                for i in range(n):
                    target[i] += sign * part[i]


@kernel()
def product_turned(A, rows, packed, depth, columns, lanes, a, c, row, out):
    """Columns row .. row + rows - 1 of out [m, n]: the transpose of A [rows, depth] times what is packed."""
    for block in range(0, rows, BLOCK):
        count = min(BLOCK, rows - block)
        block_product(A, block * depth, depth, count, packed, depth, columns, lanes, a, c)
        for some in range(0, out.shape[0], lanes):  # whose numbers lie in the same lines of the cache
            for t in range(some, min(out.shape[0], some + lanes)):
                result = out[t]
                for r in range(count):
                    result[row + block + r] = c[r * columns + t]


def room(rows: int, packed: Packed) -> tuple[np.ndarray, np.ndarray]:
    """What a thread copies rows of A to, and its part of the result."""
    rows, dtype = min(BLOCK, -(-rows // ROWS) * ROWS), packed.data.dtype
    return aligned_empty((rows * APART,), dtype), aligned_empty((rows * packed.columns,), dtype)


def flat_rows(A: np.ndarray) -> tuple[np.ndarray, int]:
    """A [m, k], whose rows are each in one piece, as one flat array, and the numbers from one row to the next."""
    (m, k), stride = A.shape, A.strides[0] // A.itemsize
    if k > 1 and A.strides[1] != A.itemsize:
        raise ValueError(f"rows in one piece expected, strides are {A.strides}")
    return np.lib.stride_tricks.as_strided(A, ((m - 1) * stride + k,), (A.itemsize,)), stride


def tiles(m: int, work: int, run) -> None:
    """Call run(first, last) for pieces of range(m), whole tiles; a row has so many multiplications."""
    if m * work < WORTH:
        run(0, m)
    else:
        in_pieces(lambda a, b: run(ROWS * a, min(m, ROWS * b)), -(-m // ROWS), max(1, WORK // (ROWS * work)))


def add_product(
    out: np.ndarray, A: np.ndarray, B: Packed, sign: float = 1.0, threads: bool = True, fresh: bool = False
) -> None:
    """To out [m, n], or if `fresh` to 0, add `sign` times A [m, k] @ B; of out and A every row is in one piece.

    They may be the same.
    """
    if not (A.size and B.data.size):
        if fresh:
            out[:] = 0
        return
    if not HAS_TILES:
        product = sign * (A @ B.data)
        out[:] = product if fresh else out + product
        return
    (flat, stride), (flat_out, apart), factor = flat_rows(A), flat_rows(out), out.dtype.type(sign)

    def run(first, last):
        rooms = room(last - first, B)
        product_rows(flat, stride, B.data, B.depth, B.n, B.lanes, *rooms, first, last, flat_out, apart, factor, fresh)

    if threads:
        tiles(len(A), B.depth * B.n, run)
    else:
        run(0, len(A))


def by_panels(tokens: np.ndarray, n: int, decode, out: np.ndarray) -> None:
    """Fill out [m, n]: tokens [m, k] times the transpose of weights, some rows decoded by decode(first, last, panel).

    panel: float32, flat, for those rows alone. `decode` is called on Numba's threads.
    """
    m, k = tokens.shape
    rows = BLOCK // 2 if HAS_TILES else max(1, PANEL // k)
    if not HAS_TILES:
        panel = np.empty((min(rows, n), k), np.float32)
        flat = panel.reshape(-1)
        for first in range(0, n, rows):
            count = min(rows, n - first)

            def part(a, b, first=first):
                decode(first + a, first + b, flat[a * k :])

            in_pieces(part, count, max(1, PIECE // k))
            np.matmul(tokens, panel[:count].T, out=out[:, first : first + count])
        return
    for start in range(0, m, WIDE):
        packed, result = pack_transposed(tokens[start : start + WIDE]), out[start : start + WIDE]

        def run(first, last, packed=packed, result=result):
            count = min(rows, last - first)
            panel, rooms = np.empty(count * k, np.float32), room(count, packed)
            for row in range(first, last, count):
                until = min(last, row + count)
                decode(row, until, panel)
                product_turned(panel, until - row, packed.data, k, packed.columns, packed.lanes, *rooms, row, result)

        tiles(n, k * packed.columns, run)
