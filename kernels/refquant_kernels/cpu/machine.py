"""What matmul and the decoders use besides `simd`: instructions that only some processors have, and odd loads.

`features` says what the code is compiled for. Everything here does the same everywhere; where the one instruction is
missing (AVX-512's permutation, VNNI's dot product of bytes) plain LLVM takes its place, and is tested by forcing it.
"""

import functools

from llvmlite import binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils, config

from refquant_kernels.cpu.simd import LANES, F, I, _function, _vector


@functools.cache
def features() -> frozenset:
    """Instruction sets that the code is compiled for: the processor's, or what NUMBA_CPU_FEATURES says."""
    if config.CPU_FEATURES is not None:
        return frozenset(part[1:] for part in config.CPU_FEATURES.split(",") if part.startswith("+"))
    if config.CPU_NAME is not None and config.CPU_NAME != "host":
        return frozenset()
    return frozenset(name for name, has in llvm.get_host_cpu_features().items() if has)


def _sum_lanes(context, builder, sig, a):
    half = LANES // 2
    while half:  # the upper half onto the lower, and so on
        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [(i + half) % LANES for i in range(LANES)])
        a, half = builder.fadd(a, builder.shuffle_vector(a, a, mask)), half // 2
    return builder.extract_element(a, ir.Constant(ir.IntType(32), 0))


def _pick(context, builder, sig, table, index):
    if "avx512f" in features():
        name = "llvm.x86.avx512.permvar.sf.512"
        kind = ir.FunctionType(table.type, [table.type, index.type])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [table, index])
    low = builder.and_(index, ir.Constant(index.type, [LANES - 1] * LANES))
    result = ir.Constant(table.type, ir.Undefined)
    for lane in range(LANES):
        place = ir.Constant(ir.IntType(32), lane)
        result = builder.insert_element(
            result, builder.extract_element(table, builder.extract_element(low, place)), place
        )
    return result


pick = _function(F, [F, I], _pick)
pick.__doc__ = """pick(table, I) -> F: lane i is table[index[i] % 16]. One instruction with AVX-512, many without."""
HAS_PICK = "avx512f" in features()


def _dot_bytes(context, builder, sig, total, unsigned, signed):
    if "avx512vnni" in features():
        kind = ir.FunctionType(total.type, [total.type] * 3)
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpdpbusd.512")
        return builder.call(function, [total, unsigned, signed])
    number = functools.partial(ir.Constant, total.type)
    for i in range(4):
        a = builder.and_(builder.lshr(unsigned, number([8 * i] * LANES)), number([255] * LANES))
        b = builder.ashr(builder.shl(signed, number([24 - 8 * i] * LANES)), number([24] * LANES))
        total = builder.add(total, builder.mul(a, b))
    return total


dot_bytes = _function(I, [I, I, I], _dot_bytes)
dot_bytes.__doc__ = (
    """dot_bytes(I, I, I) -> I: to each lane, its four unsigned bytes times its four signed bytes are added."""
)


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


def _bytes_of(context, builder, sig, *words):
    vector = ir.Constant(ir.VectorType(ir.IntType(32), 4), ir.Undefined)
    for i, word in enumerate(words):
        vector = builder.insert_element(vector, word, ir.Constant(ir.IntType(32), i))
    return builder.zext(builder.bitcast(vector, ir.VectorType(ir.IntType(8), LANES)), _vector("I"))


bytes_of = _function(I, [types.uint32] * 4, _bytes_of)
bytes_of.__doc__ = """bytes_of(a, b, c, d) -> I: the sixteen bytes of four words, the lowest first."""
sum_lanes = _function(types.float32, [F], _sum_lanes)
sum_lanes.__doc__ = """sum_lanes(F) -> float32, the sum of the lanes, added in pairs."""


def _prefetch(context, builder, sig, array, index):
    pointer = builder.gep(context.make_array(sig.args[0])(context, builder, array).data, [index])
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(function, [builder.bitcast(pointer, byte), *(ir.Constant(number, n) for n in (0, 3, 1))])
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
word_at = _function(
    types.uint32,
    [None, types.intp],
    lambda context, builder, sig, array, index: _scalar_at(context, builder, sig.args[0], array, index, ir.IntType(32)),
)
word_at.__doc__ = """word_at(bytes, i) -> uint32 of the four bytes from byte i, little-endian."""


def _as_float(context, builder, sig, a):
    return builder.bitcast(a, ir.FloatType())


float_of_bits = _function(types.float32, [types.uint32], _as_float)
float_of_bits.__doc__ = """float_of_bits(uint32) -> the float32 with these bits."""
