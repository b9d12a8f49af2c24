"""What matmul and the decoders use besides `simd`: instructions that only some processors have, and odd loads.

`features` says what the code is compiled for. Everything here does the same everywhere; where the one instruction is
missing (AVX-512's permutation, VNNI's dot product of bytes) plain LLVM takes its place, and is tested by forcing it.
"""

import functools

from llvmlite import binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils, config

from refquant_kernels.cpu.simd import LANES, F, I, _broadcast, _function


@functools.cache
def features() -> frozenset:
    """Instruction sets that the code is compiled for: the processor's, or what NUMBA_CPU_FEATURES says."""
    if config.CPU_FEATURES is not None:
        return frozenset(part[1:] for part in config.CPU_FEATURES.split(",") if part.startswith("+"))
    if config.CPU_NAME is not None and config.CPU_NAME != "host":
        return frozenset()
    return frozenset(name for name, has in llvm.get_host_cpu_features().items() if has)


def _lanes(order):
    return ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order)


def _sum_lanes(context, builder, sig, a):
    half, add = LANES // 2, builder.fadd if sig.return_type == types.float32 else builder.add
    while half:  # the upper half onto the lower, and so on
        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [(i + half) % LANES for i in range(LANES)])
        a, half = add(a, builder.shuffle_vector(a, a, mask)), half // 2
    return builder.extract_element(a, ir.Constant(ir.IntType(32), 0))


def _call(builder, name, result, *args):
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def _part(builder, a, first, count):
    """Elements first .. first + count - 1 of a vector."""
    mask = ir.Constant(ir.VectorType(ir.IntType(32), count), [*range(first, first + count)])
    return builder.shuffle_vector(a, a, mask)


def _joined(builder, a, b):
    count = 2 * a.type.count
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), count), [*range(count)]))


def _in_halves(build):
    """Build for eight lanes what is wanted for sixteen: the registers of AVX2."""

    def whole(builder, *args):
        return _joined(builder, *(build(builder, *(_part(builder, a, i, LANES // 2) for a in args)) for i in (0, 8)))

    return whole


def _pick(context, builder, sig, table, index):
    if "avx512f" in features():
        return _call(builder, "llvm.x86.avx512.permvar.sf.512", table.type, table, index)
    low = builder.and_(index, ir.Constant(index.type, [LANES - 1] * LANES))
    if "avx2" in features():
        lower, upper = _part(builder, table, 0, 8), _part(builder, table, 8, 8)

        def eight(builder, index):
            a, b = (_call(builder, "llvm.x86.avx2.permps", t.type, t, index) for t in (lower, upper))
            return builder.select(builder.icmp_signed(">", index, ir.Constant(index.type, [7] * 8)), b, a)

        return _in_halves(eight)(builder, low)
    result = ir.Constant(table.type, ir.Undefined)
    for lane in range(LANES):
        place = ir.Constant(ir.IntType(32), lane)
        result = builder.insert_element(
            result, builder.extract_element(table, builder.extract_element(low, place)), place
        )
    return result


pick = _function(F, [F, I], _pick)
pick.__doc__ = """pick(table, I) -> F: lane i is table[index[i] % 16]. One instruction with AVX-512, six with AVX2."""
HAS_PICK = "avx512f" in features()
HAS_TABLE = HAS_PICK or "avx2" in features()  # where `pick` is quicker than a search


# ---- products of bytes and of words of 16 bits, each lane four or two of them

HAS_VNNI = "avx512vnni" in features()
SIGNED_EXCESS = 128 if HAS_VNNI else 0
TURN = -0x7F7F_7F80  # turns the highest bit of each byte: 0..255 becomes -128..127, and back


def _number(a, value):
    return ir.Constant(a.type, [value] * a.type.count)


def _as(builder, a, bits):
    """The same register as elements of so many bits."""
    return builder.bitcast(a, ir.VectorType(ir.IntType(bits), a.type.count * a.type.element.width // bits))


def _pairs_of_bytes(builder, unsigned, signed):
    """Products summed in pairs, <32 x i8> each, as <16 x i16>."""
    a, b = _as(builder, unsigned, 8), _as(builder, signed, 8)
    return _call(builder, "llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(ir.IntType(16), 16), a, b)


def _pairs_of_words(builder, a, b):
    """Products summed in pairs, <16 x i16> each, as <8 x i32>."""
    a, b = _as(builder, a, 16), _as(builder, b, 16)
    return _call(builder, "llvm.x86.avx2.pmadd.wd", ir.VectorType(ir.IntType(32), 8), a, b)


def _four_products(builder, total, a, b, unsigned):
    """Plain LLVM."""
    for i in range(4):
        x = builder.shl(a, _number(a, 24 - 8 * i))
        x = (builder.lshr if unsigned else builder.ashr)(x, _number(a, 24))
        y = builder.ashr(builder.shl(b, _number(b, 24 - 8 * i)), _number(b, 24))
        total = builder.add(total, builder.mul(x, y))
    return total


def _dot_bytes(context, builder, sig, total, unsigned, signed):
    if HAS_VNNI:
        return _call(builder, "llvm.x86.avx512.vpdpbusd.512", total.type, total, unsigned, signed)
    if "avx2" in features():

        def eight(builder, total, a, b):
            pairs = _pairs_of_bytes(builder, a, b)
            return builder.add(total, _pairs_of_words(builder, pairs, _number(pairs, 1)))

        return _in_halves(eight)(builder, total, unsigned, signed)
    return _four_products(builder, total, unsigned, signed, unsigned=True)


dot_bytes = _function(I, [I, I, I], _dot_bytes)
dot_bytes.__doc__ = """dot_bytes(total, a, b) -> I: to each lane, its four bytes of a times those of b.

a is 0..128, with VNNI 0..255; b is -128..127.
"""


def _dot_signed(context, builder, sig, total, a, b):
    if HAS_VNNI:  # which multiplies unsigned with signed bytes only
        return _dot_bytes(context, builder, sig, total, builder.xor(a, _number(a, TURN)), b)
    if "avx2" in features():

        def eight(builder, total, a, b):
            a, b = _as(builder, a, 8), _as(builder, b, 8)
            size, turned = (_call(builder, "llvm.x86.avx2.psign.b", a.type, each, a) for each in (a, b))
            pairs = _pairs_of_bytes(builder, size, turned)
            return builder.add(total, _pairs_of_words(builder, pairs, _number(pairs, 1)))

        return _in_halves(eight)(builder, total, a, b)
    return _four_products(builder, total, a, b, unsigned=False)


dot_signed = _function(I, [I, I, I], _dot_signed)
dot_signed.__doc__ = """dot_signed(total, a, b) -> I: the same of signed bytes a + SIGNED_EXCESS; b is -127..127.

So a caller begins with a total of -SIGNED_EXCESS times the sum of b.
"""


def _scaled(context, builder, sig, scale):
    low = builder.and_(scale, _number(scale, 0xFFFF))
    return low if HAS_VNNI else builder.or_(low, builder.shl(scale, _number(scale, 16)))


def _dot_scaled(context, builder, sig, total, unsigned, signed, scale):
    if HAS_VNNI:
        four = _call(builder, "llvm.x86.avx512.vpdpbusd.512", total.type, _number(total, 0), unsigned, signed)
        return _call(builder, "llvm.x86.avx512.vpdpwssd.512", total.type, total, four, scale)
    if "avx2" in features():

        def eight(builder, total, a, b, scale):
            return builder.add(total, _pairs_of_words(builder, _pairs_of_bytes(builder, a, b), scale))

        return _in_halves(eight)(builder, total, unsigned, signed, scale)
    four = _four_products(builder, _number(total, 0), unsigned, signed, unsigned=True)
    scale = builder.ashr(scale, _number(scale, 16))
    return builder.add(total, builder.mul(four, scale))


scaled = _function(I, [I], _scaled)
scaled.__doc__ = """scaled(I) -> I: whole numbers of 16 bits as the scales that `dot_scaled` takes."""
dot_scaled = _function(I, [I, I, I, I], _dot_scaled)
dot_scaled.__doc__ = (
    """dot_scaled(total, a, b, scale) -> I: total + scale * (four bytes of a, 0..64, times those of b)."""
)


def _times(context, builder, sig, a, b):
    """Processors take two steps and ten cycles for a product of 32 bits; for two of 16 bits, added up, one step."""
    if "avx512bw" in features():
        low = _as(builder, builder.and_(a, _number(a, 0xFFFF)), 16)
        return _call(builder, "llvm.x86.avx512.pmaddw.d.512", a.type, low, _as(builder, b, 16))
    if "avx2" in features():
        return _in_halves(_pairs_of_words)(builder, builder.and_(a, _number(a, 0xFFFF)), b)
    return builder.mul(a, b)


times = _function(I, [I, I], _times)
times.__doc__ = """times(a, b) -> I: a * b, of numbers within 16 bits."""


def arrange(order):
    """Return a function of one vector, F or I: its lanes in this order, known when it is compiled."""

    def build(context, builder, sig, a):
        return builder.shuffle_vector(a, a, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [*order]))

    return _function(lambda a: a, [None], build)


def _load_words(half):
    """Load sixteen 32-bit words of bytes, or eight, twice."""

    def build(context, builder, sig, array, index):
        count = LANES // 2 if half else LANES
        kind = ir.VectorType(ir.IntType(32), count)
        pointer = builder.gep(context.make_array(sig.args[0])(context, builder, array).data, [index])
        value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
        value.align = 1
        if half:
            twice = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [*range(count)] * 2)
            value = builder.shuffle_vector(value, value, twice)
        return value

    return build


load_words = _function(I, [None, types.intp], _load_words(half=False))
load_words.__doc__ = """load_words(bytes, i) -> I: 64 bytes from byte i, four in each lane."""
load_words_twice = _function(I, [None, types.intp], _load_words(half=True))
load_words_twice.__doc__ = (
    """load_words_twice(bytes, i) -> I: 32 bytes from byte i in lanes 0..7, and again in lanes 8..15."""
)


def _load_quarters(context, builder, sig, array, first, second):
    """Sixteen bytes from `first`, twice, then sixteen from `second`, twice."""
    data = context.make_array(sig.args[0])(context, builder, array).data
    kind, parts = ir.VectorType(ir.IntType(32), 4), []
    for index in (first, second):
        part = builder.load(builder.bitcast(builder.gep(data, [index]), kind.as_pointer()))
        part.align = 1
        parts.append(part)
    order = [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]
    return builder.shuffle_vector(*parts, ir.Constant(ir.VectorType(ir.IntType(32), LANES), order))


load_quarters = _function(I, [None, types.intp, types.intp], _load_quarters)
load_quarters.__doc__ = (
    """load_quarters(bytes, i, j) -> I: 16 bytes from i in lanes 0..3 and 4..7, from j in 8..11, 12..15."""
)


def _load_two(sizes):
    """Load runs of bytes, one after the other, into one vector; zeros after them."""

    def build(context, builder, sig, array, *indices):
        data = context.make_array(sig.args[0])(context, builder, array).data
        whole, at = None, 0
        for index, size in zip(indices, sizes, strict=True):
            kind = ir.VectorType(ir.IntType(32), size // 4)
            part = builder.load(builder.bitcast(builder.gep(data, [index]), kind.as_pointer()))
            part.align = 1
            lanes = ir.VectorType(ir.IntType(32), LANES)
            zero = ir.Constant(kind, [0] * (size // 4))
            order = [lane - at if at <= lane < at + size // 4 else size // 4 for lane in range(LANES)]
            part = builder.shuffle_vector(part, zero, ir.Constant(lanes, order))
            keep = [lane + LANES * (lane >= at) for lane in range(LANES)]
            whole = part if whole is None else builder.shuffle_vector(whole, part, ir.Constant(lanes, keep))
            at += size // 4
        return whole

    return _function(I, [None] + [types.intp] * len(sizes), build)


load_two = _load_two((32, 32))
load_two.__doc__ = """load_two(bytes, i, j) -> I: 32 bytes from i in lanes 0..7, 32 from j in lanes 8..15."""
load_52 = _load_two((32, 16, 4))
load_52.__doc__ = """load_52(bytes, i, j, l) -> I: 32 bytes from i, 16 from j, 4 from l, then zeros."""


def _add_bit(bit):
    """Set a bit of each byte where the bit of that number is set in 64."""

    def build(context, builder, sig, value, first, second):
        wide = ir.IntType(64)
        both = builder.or_(builder.zext(first, wide), builder.shl(builder.zext(second, wide), ir.Constant(wide, 32)))
        mask = builder.bitcast(both, ir.VectorType(ir.IntType(1), 64))
        bytes_ = ir.VectorType(ir.IntType(8), 64)
        more = builder.select(mask, ir.Constant(bytes_, [1 << bit] * 64), ir.Constant(bytes_, [0] * 64))
        return builder.or_(value, builder.bitcast(more, value.type))

    return _function(I, [I, types.uint32, types.uint32], build)


add_bit_4 = _add_bit(4)
add_bit_4.__doc__ = (
    """add_bit_4(codes, a, b) -> I: 16 more in byte i where bit i is set, of a for bytes 0..31, of b for the rest."""
)


def _pick_of_32(context, builder, sig, low, high, index):
    if HAS_PICK:
        return _call(builder, "llvm.x86.avx512.vpermi2var.ps.512", low.type, low, index, high)
    raise NotImplementedError("no instruction that looks up one of 32 numbers")


pick_of_32 = _function(F, [F, F, I], _pick_of_32)
pick_of_32.__doc__ = """pick_of_32(low, high, I) -> F: lane i is index[i] % 32 in two tables; only where HAS_PICK."""


def _look_up_bytes(context, builder, sig, table, index):
    if "avx512bw" in features() or "avx2" in features():
        whole = "avx512bw" in features()
        name = "llvm.x86.avx512.pshuf.b.512" if whole else "llvm.x86.avx2.pshuf.b"

        def build(builder, table, index):
            table, low = _as(builder, table, 8), _as(builder, index, 8)
            return _as(builder, _call(builder, name, table.type, table, low), 32)

        return build(builder, table, index) if whole else _in_halves(build)(builder, table, index)
    entries = [builder.extract_element(_as(builder, table, 8), ir.Constant(ir.IntType(32), i)) for i in range(16)]
    codes = _as(builder, index, 8)
    result = _number(codes, 0)
    for i, entry in enumerate(entries):  # sixteen comparisons
        same = builder.icmp_unsigned("==", codes, _number(codes, i))
        result = builder.select(same, _broadcast(builder, entry, 64), result)
    return _as(builder, result, 32)


look_up_bytes = _function(I, [I, I], _look_up_bytes)
look_up_bytes.__doc__ = """look_up_bytes(table, codes) -> I: for each byte, 0..15, that entry of a table.

The table has sixteen bytes, four times over.
"""


HAS_BYTE_TABLES = "avx512vbmi" in features()


def _bytes_times(factor, high):
    """Build from the products of the even bytes, 16 bits each, and of the odd ones."""

    def build(context, builder, sig, a):
        a, word = _as(builder, a, 8), ir.VectorType(ir.IntType(16), 32)
        even, odd = (
            _call(builder, "llvm.x86.avx512.pmaddubs.w.512", word, a, ir.Constant(a.type, factors * 32))
            for factors in ([factor, 0], [0, factor])
        )
        if high:
            both = builder.or_(builder.lshr(even, _number(even, 8)), builder.and_(odd, _number(odd, -256)))
        else:
            both = builder.or_(builder.and_(even, _number(even, 255)), builder.shl(odd, _number(odd, 8)))
        return _as(builder, both, 32)

    return _function(I, [I], build)


high_of_27_times, low_of_27_times = _bytes_times(27, high=True), _bytes_times(27, high=False)
high_of_9_times = _bytes_times(9, high=True)
high_of_27_times.__doc__ = high_of_9_times.__doc__ = """The upper 8 bits of each byte times that; only with AVX-512."""
low_of_27_times.__doc__ = """The lower 8 bits of each byte times that; only with AVX-512."""
byte_of_64 = _function(
    I,
    [I, I],
    lambda context, builder, sig, table, index: _as(
        builder,
        _call(
            builder,
            "llvm.x86.avx512.permvar.qi.512",
            ir.VectorType(ir.IntType(8), 64),
            _as(builder, table, 8),
            _as(builder, index, 8),
        ),
        32,
    ),
)
byte_of_64.__doc__ = (
    """byte_of_64(table, I) -> I: for each byte that entry, modulo 64, of a table; where HAS_BYTE_TABLES."""
)


def _bytes_above(limit):
    def build(context, builder, sig, a):
        a = _as(builder, a, 8)
        above = builder.icmp_unsigned(">", a, _number(a, limit))
        return _as(builder, builder.select(above, _number(a, 1), _number(a, 0)), 32)

    return _function(I, [I], build)


above_85, above_170 = _bytes_above(85), _bytes_above(170)
above_85.__doc__ = above_170.__doc__ = """1 in each byte that is larger, else 0."""


def _triple_bytes(context, builder, sig, a):
    a = _as(builder, a, 8)
    return _as(builder, builder.add(builder.add(a, a), a), 32)


triple_bytes = _function(I, [I], _triple_bytes)
triple_bytes.__doc__ = """triple_bytes(I) -> I: each byte times 3, the low 8 bits."""


def _four_halves(context, builder, sig, array, first, second):
    """Two 32-bit words, side by side, are four float16, which one instruction converts."""
    if HAS_HALF:
        words = ir.Constant(ir.VectorType(ir.IntType(32), 4), [0] * 4)
        for i, index in enumerate((first, second)):
            word = _scalar_at(context, builder, sig.args[0], array, index, ir.IntType(32))
            words = builder.insert_element(words, word, ir.Constant(ir.IntType(32), i))
        kind = ir.VectorType(ir.FloatType(), 4)
        halves = builder.bitcast(words, ir.VectorType(ir.IntType(16), 8))
        halves = builder.bitcast(_part(builder, halves, 0, 4), ir.VectorType(ir.HalfType(), 4))
        four = builder.fpext(halves, kind)
        order = [0, 1, 2, 3] + [4] * (LANES - 4)
        return builder.shuffle_vector(four, ir.Constant(kind, [0.0] * 4), _lanes(order))
    raise NotImplementedError("no instruction for float16")


four_halves = _function(F, [None, types.intp, types.intp], _four_halves)
four_halves.__doc__ = """four_halves(bytes, i, j) -> F: the float16 at bytes i, i + 2, j, j + 2, then zeros; only where
HAS_HALF.
"""


def _in_front(context, builder, sig, *values):
    front = ir.Constant(ir.VectorType(ir.FloatType(), LANES), [0.0] * LANES)
    for i, value in enumerate(values):
        front = builder.insert_element(front, value, ir.Constant(ir.IntType(32), i))
    return front


in_front = _function(F, [types.float32] * 4, _in_front)
in_front.__doc__ = """in_front(a, b, c, d) -> F: these in lanes 0..3, then zeros."""


sum_lanes = _function(types.float32, [F], _sum_lanes)
sum_lanes_int = _function(types.int32, [I], _sum_lanes)
sum_lanes_int.__doc__ = """sum_lanes_int(I) -> int32, the sum of the lanes."""
sum_lanes.__doc__ = """sum_lanes(F) -> float32, the sum of the lanes, added in pairs."""


def build_prefetch(builder, pointer):
    """Ask for the cache line at a pointer, to read it soon."""
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(function, [builder.bitcast(pointer, byte), *(ir.Constant(number, n) for n in (0, 3, 1))])


def _prefetch(context, builder, sig, array, index):
    build_prefetch(builder, builder.gep(context.make_array(sig.args[0])(context, builder, array).data, [index]))
    return context.get_dummy_value()


prefetch = _function(types.void, [None, types.intp], _prefetch)
prefetch.__doc__ = """prefetch(array, i): ask for the cache line of element i; beyond the end it does nothing."""


def _scalar_at(context, builder, array_type, array, index, kind):
    pointer = builder.gep(context.make_array(array_type)(context, builder, array).data, [index])
    value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    value.align = 1
    return value


HAS_HALF = "f16c" in features()  # conversion of float16 in one instruction
half_at = _function(
    types.float32,
    [None, types.intp],
    lambda context, builder, sig, array, index: builder.fpext(
        _scalar_at(context, builder, sig.args[0], array, index, ir.HalfType()), ir.FloatType()
    ),
)
half_at.__doc__ = """half_at(bytes, i) -> float32 of the float16 at byte i; only where HAS_HALF."""


def _splat_half_at(context, builder, sig, array, index):
    """Sixteen of them are converted: to load one, LLVM replaces a part of a register, whose other part has to be ready.

    So blocks that have nothing to do with each other would go one after the other, at half the speed.
    """
    half = _scalar_at(context, builder, sig.args[0], array, index, ir.HalfType())
    return builder.fpext(_broadcast(builder, half), ir.VectorType(ir.FloatType(), LANES))


splat_half_at = _function(F, [None, types.intp], _splat_half_at)
splat_half_at.__doc__ = """splat_half_at(bytes, i) -> F, the float16 at byte i in every lane; only where HAS_HALF."""


def _load_float16(context, builder, sig, array, index):
    half = ir.VectorType(ir.HalfType(), LANES)
    return builder.fpext(
        _scalar_at(context, builder, sig.args[0], array, index, half), ir.VectorType(ir.FloatType(), LANES)
    )


load_float16 = _function(F, [None, types.intp], _load_float16)
load_float16.__doc__ = """load_float16(bytes, i) -> F: sixteen float16 from byte i; only where HAS_HALF."""
word_at = _function(
    types.uint32,
    [None, types.intp],
    lambda context, builder, sig, array, index: _scalar_at(context, builder, sig.args[0], array, index, ir.IntType(32)),
)
word_at.__doc__ = """word_at(bytes, i) -> uint32 of the four bytes from byte i, little-endian."""


byte_at = _function(
    types.uint8,
    [None, types.intp],
    lambda context, builder, sig, array, index: _scalar_at(context, builder, sig.args[0], array, index, ir.IntType(8)),
)
byte_at.__doc__ = """byte_at(bytes, i) -> uint8; bytes[i] would first ask whether i counts from the end."""


def _as_float(context, builder, sig, a):
    return builder.bitcast(a, ir.FloatType())


float_of_bits = _function(types.float32, [types.uint32], _as_float)
float_of_bits.__doc__ = """float_of_bits(uint32) -> the float32 with these bits."""
