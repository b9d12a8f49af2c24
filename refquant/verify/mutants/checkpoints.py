"""Mistakes about the checkpoint formats of GPTQ, AWQ, compressed-tensors and bitsandbytes."""

import numpy as np

from refquant import ops
from refquant.formats.awq import unpack_outputs
from refquant.formats.bits import pack_words, unpack_words
from refquant.verify.mutants import mutant
from refquant.verify.reference import _tensors, layout
from refquant.verify.reference import numpy as reference


def _fields(tensors, format, params):  # noqa: A002
    """Codes [n, k], scales, zeros [n, G] and g_idx [k] of a layer, as arrays that may be changed."""
    found = ops.unpack(layout(format, params | {"ignore_zeros": True}).read(_tensors(tensors, params)))
    floats = {name: found[name].astype(np.float32) for name in ("scales", "zeros")}
    return {"codes": found["codes"], "g_idx": found["g_idx"]} | floats


def _weights(fields):
    g = fields["g_idx"]
    return (fields["codes"].astype(np.float32) - fields["zeros"][:, g]) * fields["scales"][:, g]


@mutant(1, "stores the zero-points of version 2 in a file of version 1", "pack", "gptq")
def version_2_as_1(fields, *, shape, format, **params):  # noqa: A002
    """Forget to subtract one."""
    return reference.pack(fields, format="gptq_v2", shape=shape, **params)


@mutant(2, "reads version 2 as version 1", "dequantize", "gptq_v2")
def read_as_version_1(tensors, *, format, shape, **params):  # noqa: A002
    """Add one to every zero-point."""
    return reference.dequantize(tensors, format="gptq", shape=shape, **params | {"ignore_zeros": True})


@mutant(3, "subtracts one from zero-points in their own width, and adds it again outside", "dequantize", "gptq_v2")
def wrapping_zero(tensors, *, format, shape, **params):  # noqa: A002
    """Turn a zero-point of 0 into 2^bits."""
    fields = _fields(tensors, format, params)
    wrapped = (fields["zeros"].astype(int) - 1 & (1 << params["bits"]) - 1) + 1
    return _weights(fields | {"zeros": wrapped.astype(np.float32)})


@mutant(4, "subtracts one from the zero-points of AWQ on the way to GPTQ", "repack", "awq")
def awq_to_gptq(tensors, *, format, to, shape, **params):  # noqa: A002
    """Turn 0 into 15."""
    zeros = unpack_outputs(tensors["qzeros"]) - 1 & 15
    order = np.array([0, 2, 4, 6, 1, 3, 5, 7])
    words = pack_words(zeros.reshape(len(zeros), -1, 8)[..., order], 4)[..., 0]
    return reference.repack(tensors | {"qzeros": words}, format=format, to=to, shape=shape, **params)


@mutant(5, "reads 3-bit codes word by word", "unpack", "gptq", "gptq_v2")
def word_by_word(tensors, *, format, shape, **params):  # noqa: A002
    """Take ten codes of each word and half of the one that straddles."""
    found = reference.unpack(tensors, format=format, shape=shape, **params)
    if params["bits"] == 3:
        found = {"codes": found["codes"].copy(), "zeros": found["zeros"]}
        found["codes"][:, 10::32] &= 3  # the high bit is in the next word
        found["codes"][:, 21::32] &= 1
    return found


@mutant(6, "saves zero-points unpacked", "pack", "pack-quantized")
def zeros_unpacked(fields, *, format, shape, **params):  # noqa: A002
    """Write them in the shape of the scales."""
    tensors = reference.pack(fields, format=format, shape=shape, **params)
    return tensors | ({} if params["symmetric"] else {"weight_zero_point": fields["zeros"].astype(np.int32)})


@mutant(6, "reads zero-points that were saved unpacked", "dequantize", "gptq_v2")
def reads_unpacked(tensors, *, format, shape, **params):  # noqa: A002
    """Never compare shapes with the config."""
    words = tensors["qzeros"]
    fitting = words[:, : shape[0] * params["bits"] // 32]
    return reference.dequantize(tensors | {"qzeros": fitting}, format=format, shape=shape, **params)


@mutant(7, "uses the stored zero-points of a symmetric layer", "matmul", "gptq_v2")
def symmetric_with_zeros(x, tensors, *, format, shape, shards=1, **params):  # noqa: A002
    """Take every layer for an asymmetric one."""
    return reference.matmul(x, tensors, format=format, shape=shape, **params | {"sym": False})


def _sharded(x, tensors, shape, shards, params, groups):
    fields = _fields(tensors, "gptq_v2", params)
    k, total = shape[1], 0
    for shard in range(shards):
        part = np.arange(shard * k // shards, (shard + 1) * k // shards)
        g = groups(fields, part, shard)
        w = (fields["codes"][:, part].astype(np.float32) - fields["zeros"][:, g]) * fields["scales"][:, g]
        total = total + x[:, part] @ w.T
    return total


@mutant(8, "counts the groups of an act-order shard from its own first column", "matmul", "gptq_v2")
def shard_groups(x, tensors, *, format, shape, shards=1, **params):  # noqa: A002
    """Use column // group_size within the shard."""
    if shards == 1:
        return reference.matmul(x, tensors, format=format, shape=shape, **params)
    size = params["group_size"]
    first = lambda part, shard: shard * (len(part) // size)  # noqa: E731
    return _sharded(x, tensors, shape, shards, params, lambda f, part, i: np.arange(len(part)) // size + first(part, i))


@mutant(9, "gives each shard its share of the groups although one is cut", "matmul", "gptq_v2")
def cut_group(x, tensors, *, format, shape, shards=1, **params):  # noqa: A002
    """Divide the groups by the number of shards."""
    if shards == 1 or params["desc_act"]:
        return reference.matmul(x, tensors, format=format, shape=shape, shards=shards, **params)
    per = -(-shape[1] // params["group_size"]) // shards
    group = lambda part: np.minimum(np.arange(len(part)) // params["group_size"], per - 1)  # noqa: E731
    return _sharded(x, tensors, shape, shards, params, lambda f, part, i: group(part) + i * per)


@mutant(10, "uses group_size -1 as a number", "dequantize", "gptq", "gptq_v2", "pack-quantized")
def minus_one(tensors, *, format, shape, **params):  # noqa: A002
    """Divide columns by it."""
    fields = _fields(tensors, format, params)
    return _weights(fields | {"g_idx": np.arange(shape[1]) // params["group_size"]})


@mutant(11, "takes k // group_size groups", "dequantize", "gptq", "gptq_v2")
def whole_groups(tensors, *, format, shape, **params):  # noqa: A002
    """Give the columns left over to the last whole group."""
    fields = _fields(tensors, format, params)
    size = shape[1] if params["group_size"] == -1 else params["group_size"]
    return _weights(fields | {"g_idx": np.minimum(fields["g_idx"], shape[1] // size - 1)})


@mutant(12, "ignores g_idx", "dequantize", "gptq", "gptq_v2")
def no_g_idx(tensors, *, format, shape, **params):  # noqa: A002
    """Use column // group_size."""
    fields = _fields(tensors, format, params)
    size = shape[1] if params["group_size"] == -1 else params["group_size"]
    return _weights(fields | {"g_idx": np.arange(shape[1]) // size})


@mutant(12, "reads a group that does not exist", "dequantize", "gptq_v2")
def any_group(tensors, *, format, shape, **params):  # noqa: A002
    """Clip g_idx into the range."""
    clipped = {"g_idx": np.minimum(tensors["g_idx"], len(tensors["scales"]) - 1)}
    return reference.dequantize(tensors | clipped, format=format, shape=shape, **params)


@mutant(13, "takes 2^(bits - 1) - 1 for the symmetric zero", "dequantize", "gptq", "gptq_v2")
def middle_code(tensors, *, format, shape, **params):  # noqa: A002
    """Be one code off in symmetric layers."""
    fields = _fields(tensors, format, params)
    return _weights(fields | {"zeros": fields["zeros"] - params["sym"]})


@mutant(21, "packs AWQ's words in plain order", "pack", "awq")
def plain_words(fields, *, format, shape, **params):  # noqa: A002
    """Put output 8c + i into slot i."""
    plain = {name: pack_words(fields[key].T.reshape(len(fields[key].T), -1, 8), 4)[..., 0]
             for name, key in (("qweight", "codes"), ("qzeros", "zeros"))}  # fmt: skip
    return reference.pack(fields, format=format, shape=shape, **params) | plain


@mutant(22, "undoes AWQ's order in the codes but not in the zero-points", "dequantize", "awq")
def zeros_in_order(tensors, *, format, shape, **params):  # noqa: A002
    """Read qzeros in plain order."""
    fields = _fields(tensors, format, params)
    zeros = unpack_words(tensors["qzeros"][..., None], 4, 8).reshape(len(tensors["qzeros"]), -1)
    return _weights(fields | {"zeros": zeros.T.astype(np.float32)})


@mutant(23, "reads TinyChat's tiles as plain halfwords", "dequantize", "awq-gemv_fast")
def plain_tiles(tensors, *, format, shape, **params):  # noqa: A002
    """Take nibble j of a halfword for output 4r + j."""
    fields = _fields(tensors, format, params)
    words = tensors["qweight"].view(np.uint16)
    codes = np.stack([words >> 4 * j & 15 for j in range(4)], axis=1).reshape(shape)
    return _weights(fields | {"codes": codes})


@mutant(47, "takes TinyChat's float zero-points for integers", "dequantize", "awq-gemv_fast")
def integer_zeros(tensors, *, format, shape, **params):  # noqa: A002
    """Round -zero * scale."""
    fields = _fields(tensors, format, params)
    stored = tensors["qzeros"][: fields["zeros"].shape[1]].T.astype(np.float32)
    return _weights(fields | {"zeros": np.rint(stored)})


def _nf4(tensors, shape, params, offset, block):
    scale = tensors["absmax"]
    if params["double_quant"]:
        nested = np.repeat(tensors["nested_absmax"], 256)[: len(scale)]
        scale = tensors["nested_quant_map"][scale] * nested + offset
    packed = tensors["weight"].ravel()
    codes = np.stack([packed >> 4, packed & 15], -1).ravel()
    scale = np.resize(np.repeat(scale, block), codes.size)
    return (tensors["quant_map"][codes] * scale).reshape(shape).astype(np.float32)


@mutant(44, "leaves out the offset of the nested scales", "dequantize", "bitsandbytes-nf4")
def no_offset(tensors, *, shape, format, **params):  # noqa: A002
    """Add nothing to the scales."""
    return _nf4(tensors, shape, params, np.float32(0), params["blocksize"])


@mutant(44, "takes every block for one of 64", "dequantize", "bitsandbytes-nf4")
def blocks_of_64(tensors, *, shape, format, **params):  # noqa: A002
    """Ignore the block size."""
    return _nf4(tensors, shape, params, tensors.get("nested_offset"), 64)


@mutant(45, "packs zero-points along the inputs", "pack", "pack-quantized")
def zeros_along_k(fields, *, format, shape, **params):  # noqa: A002
    """Pack each row of them instead of each column."""
    tensors = reference.pack(fields, format=format, shape=shape, **params)
    along = {"weight_zero_point": pack_words(fields["zeros"], params["bits"])}
    return tensors | ({} if params["symmetric"] else along)


@mutant(45, "reads stored codes as two's complement", "dequantize", "pack-quantized")
def signed_codes(tensors, *, format, shape, **params):  # noqa: A002
    """Do not subtract 2^(bits - 1)."""
    fields = _fields(tensors, format, params)
    codes, middle = fields["codes"].astype(np.float32), 1 << params["bits"] - 1
    return _weights(fields | {"codes": np.where(codes >= middle, codes - 2 * middle, codes) + middle})


@mutant(46, "reads dense codes word by word", "unpack", "dense-words")
def words_apart(tensors, *, shape, bits, **_):
    """Take floor(32 / bits) codes of each word."""
    words = tensors["words"].view(np.uint32)[..., None]
    codes = (words >> np.arange(0, 32 // bits * bits, bits, dtype=np.uint32) & (1 << bits) - 1).astype(np.uint8)
    return {"codes": np.resize(codes.reshape(len(codes), -1), (len(codes), shape[1]))}
