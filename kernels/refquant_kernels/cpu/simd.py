"""Sixteen numbers that are computed with as one: the vector types `F` (float32), `I` (int32) and `M` (yes or no).

Numba has no vector types, and LLVM's automatic vectorizer gives up on code as long as ggml's searches. So the vectors
are made by hand here, and a search is then written as if for one block, as in C, while each number in it stands for
sixteen blocks::

    total = splat(0.0)
    for i in range(32):
        x = load(blocks, 16 * i)              # weight i of sixteen blocks
        total = total + x * x                 # sixteen sums, each in its own order from left to right

Every lane does exactly the float32 operations of the scalar program, in its order: no sum is split, nothing is fused
(no `fastmath` anywhere near), division and square root are the correctly rounded ones. Branches become `select`. The
loop variable runs over the weights, so all state stays in registers: that is the one idea that makes the encoders fast.

The types are LLVM's own `<16 x float>`. LLVM cuts them to the machine's registers: one on AVX-512, two on AVX2, four on
SSE and NEON. No instruction set is named.

Operators: + - * / and comparisons; & | ^ << >> (arithmetic) on `I`, & | ~ on `M`; `abs`. A plain number beside a vector
is put in every lane, rounded to float32 first.
"""

import operator
from inspect import Parameter, Signature

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, lower_cast, models, register_model

LANES = 16


class Lanes(types.Type):
    """The type of sixteen float32 ("F"), int32 ("I") or yes-or-no values ("M")."""

    def __init__(self, kind: str):
        self.kind = kind
        super().__init__(name=f"Lanes{LANES}{kind}")

    def can_convert_from(self, typingctx, other):
        """Numbers become vectors with the same number in every lane."""
        if isinstance(other, types.Number) and self.kind != "M":
            return typingctx.can_convert(other, types.float32) or 0
        return None


F, I, M = Lanes("F"), Lanes("I"), Lanes("M")
ELEMENT = {"F": ir.FloatType(), "I": ir.IntType(32), "M": ir.IntType(1)}
SCALAR = {"F": types.float32, "I": types.int32}


def _vector(kind):
    return ir.VectorType(ELEMENT[kind], LANES)


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    """In LLVM, a vector."""

    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _vector(fe_type.kind))


def _broadcast(builder, scalar, count=LANES):
    one = ir.Constant(ir.VectorType(scalar.type, count), ir.Undefined)
    one = builder.insert_element(one, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count))


@lower_cast(types.Number, Lanes)
@lower_cast(types.IntegerLiteral, Lanes)
def _to_lanes(context, builder, fromty, toty, value):
    scalar = context.cast(builder, value, types.unliteral(fromty), SCALAR[toty.kind])
    return _broadcast(builder, scalar)


# ---- operators


def _binary(op, kinds, build, result=None):
    """Type and lower `op` on two vectors of one of `kinds`, or a vector and a number."""

    @infer_global(op)
    class Template(AbstractTemplate):
        def generic(self, args, kws):
            vectors = [a for a in args if isinstance(a, Lanes)]
            if len(args) != 2 or not vectors or vectors[0].kind not in kinds:
                return None
            own = vectors[0]
            if any(a != own and not isinstance(a, types.Number) for a in args):
                return None
            return signature(M if result else own, own, own)

    for kind in kinds:

        @lower_builtin(op, {"F": F, "I": I, "M": M}[kind], {"F": F, "I": I, "M": M}[kind])
        def lower(context, builder, sig, args, kind=kind):
            return build(builder, kind, *args)


def _arithmetic(name):
    return lambda builder, kind, a, b: getattr(builder, ("f" if kind == "F" else "") + name)(a, b)


def _compare(symbol):
    def build(builder, kind, a, b):
        if kind == "I":
            return builder.icmp_signed(symbol, a, b)
        return builder.fcmp_unordered(symbol, a, b) if symbol == "!=" else builder.fcmp_ordered(symbol, a, b)

    return build


for _op, _name in ((operator.add, "add"), (operator.sub, "sub"), (operator.mul, "mul")):
    _binary(_op, "FI", _arithmetic(_name))
_binary(operator.truediv, "F", lambda builder, kind, a, b: builder.fdiv(a, b))
_binary(operator.and_, "IM", lambda builder, kind, a, b: builder.and_(a, b))
_binary(operator.or_, "IM", lambda builder, kind, a, b: builder.or_(a, b))
_binary(operator.xor, "I", lambda builder, kind, a, b: builder.xor(a, b))
_binary(operator.lshift, "I", lambda builder, kind, a, b: builder.shl(a, b))
_binary(operator.rshift, "I", lambda builder, kind, a, b: builder.ashr(a, b))
for _op, _symbol in (
    (operator.lt, "<"), (operator.le, "<="), (operator.gt, ">"), (operator.ge, ">="), (operator.eq, "=="),
    (operator.ne, "!="),
):  # fmt: skip
    _binary(_op, "FI", _compare(_symbol), result=True)


def _unary(op, kind, build):
    own = {"F": F, "M": M}[kind]

    @infer_global(op)
    class Template(AbstractTemplate):
        def generic(self, args, kws):
            return signature(own, own) if args == (own,) else None

    @lower_builtin(op, own)
    def lower(context, builder, sig, args):
        return build(builder, args[0])


def _call(builder, name, *args):
    kind = ir.FunctionType(args[0].type, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


_unary(operator.neg, "F", lambda builder, a: builder.fneg(a))
_unary(abs, "F", lambda builder, a: _call(builder, f"llvm.fabs.v{LANES}f32", a))
_unary(operator.invert, "M", lambda builder, a: builder.not_(a))


# ---- functions


def _function(result, arguments, build):
    """Make an intrinsic from the types of its result and arguments, None for any, and the code that builds it."""

    def typed(typingctx, *args):
        wanted = [given if want is None else want for given, want in zip(args, arguments, strict=True)]
        return signature(result if isinstance(result, types.Type) else result(*args), *wanted), (
            lambda context, builder, sig, values: build(context, builder, sig, *values)
        )

    names = ["typingctx", *"abcdefgh"[: len(arguments)]]  # Numba wants a name for each
    typed.__signature__ = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names])
    return intrinsic(typed)


def _address(context, builder, array_type, array, index, kind=None):
    """Pointer to element `index` of an array, no bounds checked; as a vector of its elements."""
    data = context.make_array(array_type)(context, builder, array).data
    pointer = builder.gep(data, [index])
    return builder.bitcast(pointer, ir.VectorType(data.type.pointee, LANES).as_pointer())


def _load(context, builder, sig, array, index):
    value = builder.load(_address(context, builder, sig.args[0], array, index))
    value.align = sig.args[0].dtype.bitwidth // 8
    if sig.args[0].dtype in (types.uint8, types.uint16):
        return builder.zext(value, _vector("I"))
    return builder.sext(value, _vector("I")) if sig.args[0].dtype == types.int8 else value


def _load_as(element, signed):
    """Load sixteen numbers of another width than the array of bytes that they lie in."""

    def build(context, builder, sig, array, index):
        pointer = builder.gep(context.make_array(sig.args[0])(context, builder, array).data, [index])
        value = builder.load(builder.bitcast(pointer, ir.VectorType(element, LANES).as_pointer()))
        value.align = 1
        return (builder.sext if signed else builder.zext)(value, _vector("I"))

    return build


def _store(context, builder, sig, array, index, value):
    pointer = _address(context, builder, sig.args[0], array, index)
    if pointer.type.pointee != value.type:
        value = builder.trunc(value, pointer.type.pointee)
    builder.store(value, pointer).align = sig.args[0].dtype.bitwidth // 8
    return context.get_dummy_value()


def _store_pairs(context, builder, sig, array, index, a, b):
    narrow = ir.VectorType(ir.IntType(8), LANES)
    order = [i for lane in range(LANES) for i in (lane, lane + LANES)]
    both = ir.Constant(ir.VectorType(ir.IntType(32), 2 * LANES), order)
    value = builder.shuffle_vector(builder.trunc(a, narrow), builder.trunc(b, narrow), both)
    pointer = builder.gep(context.make_array(sig.args[0])(context, builder, array).data, [index])
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = 1
    return context.get_dummy_value()


def _store_float_pairs(context, builder, sig, array, index, a, b):
    order = [i for lane in range(LANES) for i in (lane, lane + LANES)]
    value = builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), 2 * LANES), order))
    pointer = builder.gep(context.make_array(sig.args[0])(context, builder, array).data, [index])
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = 4
    return context.get_dummy_value()


def _kind_of(array, *_):
    return F if array.dtype == types.float32 else I


splat = _function(F, [types.float32], lambda context, builder, sig, a: _broadcast(builder, a))
splat.__doc__ = """splat(number) -> F with the number in every lane."""
splat_int = _function(I, [types.int32], lambda context, builder, sig, a: _broadcast(builder, a))
splat_int.__doc__ = """splat_int(number) -> I with the number in every lane."""
load = _function(_kind_of, [None, types.intp], _load)
load.__doc__ = """load(array, i) -> elements i .. i + 15; float32 gives F; int32 and narrower integers give I."""
load_signed = _function(I, [None, types.intp], _load_as(ir.IntType(8), signed=True))
load_signed.__doc__ = """load_signed(bytes, i) -> I: sixteen signed bytes from byte i."""
load_halves = _function(I, [None, types.intp], _load_as(ir.IntType(16), signed=False))
load_halves.__doc__ = """load_halves(bytes, i) -> I: sixteen unsigned numbers of two bytes from byte i."""
lane_numbers = _function(I, [], lambda context, builder, sig: ir.Constant(_vector("I"), list(range(LANES))))
lane_numbers.__doc__ = """lane_numbers() -> I: 0, 1, ... 15."""
store = _function(types.void, [None, types.intp, None], _store)
store.__doc__ = """store(array, i, value): to elements i .. i + 15; of I in an array of bytes or int16 the low bits."""
store_pairs = _function(types.void, [None, types.intp, I, I], _store_pairs)
store_pairs.__doc__ = """store_pairs(bytes, i, a, b): from byte i on a[0], b[0], a[1], b[1], ..., low bytes of I."""
store_float_pairs = _function(types.void, [None, types.intp, F, F], _store_float_pairs)
store_float_pairs.__doc__ = """store_float_pairs(array, i, a, b): from element i on a[0], b[0], a[1], b[1], ..."""
select = _function(
    lambda mask, a, b: a if isinstance(a, Lanes) else b,
    [M, None, None],
    lambda context, builder, sig, mask, a, b: builder.select(mask, a, b),
)
select.__doc__ = """select(mask, a, b) -> a where the mask is set, otherwise b; both vectors."""
sqrt = _function(F, [F], lambda context, builder, sig, a: _call(builder, f"llvm.sqrt.v{LANES}f32", a))
sqrt.__doc__ = """sqrt(F) -> F, correctly rounded."""
to_float = _function(F, [I], lambda context, builder, sig, a: builder.sitofp(a, _vector("F")))
to_float.__doc__ = """to_float(I) -> F, the same numbers, rounded to even."""
to_int = _function(I, [F], lambda context, builder, sig, a: builder.fptosi(a, _vector("I")))
to_int.__doc__ = """to_int(F) -> I, cut toward zero; undefined beyond 32 bits."""
bits = _function(I, [F], lambda context, builder, sig, a: builder.bitcast(a, _vector("I")))
bits.__doc__ = """bits(F) -> I, the same 32 bits."""
from_bits = _function(F, [I], lambda context, builder, sig, a: builder.bitcast(a, _vector("F")))
from_bits.__doc__ = """from_bits(I) -> F, the same 32 bits."""
shift_right = _function(I, [I, I], lambda context, builder, sig, a, b: builder.lshr(a, b))
shift_right.__doc__ = """shift_right(I, I) -> I, zeros coming in at the top."""
fma = _function(F, [F, F, F], lambda context, builder, sig, *abc: _call(builder, f"llvm.fmuladd.v{LANES}f32", *abc))
fma.__doc__ = """fma(a, b, c) -> a * b + c, rounded once where the machine has it, twice where not: for matmul only."""
any_lane = _function(
    types.boolean,
    [M],
    lambda context, builder, sig, a: builder.icmp_unsigned(
        "!=", builder.bitcast(a, ir.IntType(LANES)), ir.Constant(ir.IntType(LANES), 0)
    ),
)
any_lane.__doc__ = """any_lane(M) -> bool."""


def _turn(context, builder, sig, source, starts, offset, target, at, stride):
    element = context.make_array(sig.args[0])(context, builder, source).data.type.pointee
    size = element.width // 8 if isinstance(element, ir.IntType) else 4
    index = context.make_array(sig.args[1])(context, builder, starts).data
    rows = []
    for lane in range(LANES):
        start = builder.load(builder.gep(index, [ir.Constant(ir.IntType(64), lane)]))
        row = builder.load(_address(context, builder, sig.args[0], source, builder.add(start, offset)))
        row.align = size
        rows.append(row)
    both = ir.VectorType(ir.IntType(32), LANES)
    half = LANES // 2
    while half:  # swap the upper right with the lower left quarter of ever smaller squares
        low = [i + LANES - half if i & half else i for i in range(LANES)]
        high = [i + LANES if i & half else i + half for i in range(LANES)]
        new = list(rows)
        for i in range(LANES):
            if not i & half:
                pair = rows[i], rows[i | half]
                new[i] = builder.shuffle_vector(*pair, ir.Constant(both, low))
                new[i | half] = builder.shuffle_vector(*pair, ir.Constant(both, high))
        rows, half = new, half // 2
    for lane in range(LANES):
        place = builder.add(at, builder.mul(stride, ir.Constant(ir.IntType(64), lane)))
        builder.store(rows[lane], _address(context, builder, sig.args[3], target, place)).align = size
    return context.get_dummy_value()


turn = _function(types.void, [None, None, types.intp, None, types.intp, types.intp], _turn)
turn.__doc__ = """turn(source, starts, offset, target, at, stride): transpose sixteen runs of sixteen elements.

Element j of the run at source[starts[i] + offset] goes to target[at + stride * j + i].
"""
