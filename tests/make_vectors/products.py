"""Products of activations with quantized weights: exact in float64, with the error that a plain float32 loop makes."""

import ggml
import numpy as np
from checkpoints import GOLD, MORE, layer, weights
from suite import AUTOAWQ, GGML, GPTQMODEL, Suite


def exact(x, w):
    """The product in float64, and the result of a float32 loop over the columns."""
    y = x.astype(np.float64) @ w.astype(np.float64).T
    loop = np.zeros(y.shape, np.float32)
    for column in range(w.shape[1]):
        loop += x[:, column, None] * w[None, :, column]
    return {"y": y, "loop": loop}


def matmul():
    """matmul, also in shards."""
    suite = Suite("matmul", "x times the weights, against float64; the error may be twice that of a float32 loop.")
    rng = np.random.default_rng(600)

    def add(id, fmt, w, data, what, programs, mistakes, flags, params=None, golden=None, x=None, **others):
        x = rng.standard_normal((3, w.shape[1])).astype(np.float32) if x is None else x
        suite.add(id, "matmul", fmt, w.shape, {"x": x} | data, exact(x, w), "matvec", what, programs, mistakes, flags,
                  params, golden, **others)  # fmt: skip

    for name in ("Q4_0", "Q8_0", "Q4_K", "Q6_K"):
        k = 768 if name.endswith("K") else 288
        blocks = ggml.quantize((rng.standard_normal((16, k)) * 0.02).astype(np.float32), name)
        add("normal", name, ggml.dequantize(blocks, name), {"blocks": blocks},
            "the last columns left out, or a sum in float16", (GGML,), {46, 48},
            {"NonMultiple256"} if k == 288 else {"MultiBlock"})  # fmt: skip

    fields, tensors, _ = layer(GOLD, "gptq-v2-4bit-sym")
    base = {"bits": 4, "group_size": 32, "sym": True, "desc_act": False, "checkpoint_format": "gptq_v2"}
    w = weights(fields, 32)
    noise = tensors | {"qzeros": rng.integers(-(2**31), 2**31, tensors["qzeros"].shape).astype(np.int32)}
    add("symmetric-ignores-zeros", "gptq_v2", w, noise,
        "zero-points used where sym is true and the caller declares that they are to be ignored", (GPTQMODEL,), {7},
        {"Symmetric"}, base | {"ignore_zeros": True}, "checkpoint_goldens")  # fmt: skip
    small = {"scales": (((127 - 100 - rng.integers(0, 13, (2, 32))) << 7).astype(np.uint16))}  # 2^-100..2^-112
    group = np.arange(64) // 32
    powers = (small["scales"].astype(np.uint32) << 16).view(np.float32).T[:, group]
    x = (rng.standard_normal((3, 64)) * 2.0**100).astype(np.float32)
    add("tiny-bf16-scales", "gptq_v2", (fields["codes"].astype(np.float32) - 8) * powers, tensors | small,
        "scales in bfloat16 converted to float16, in which 2^-100 is zero", (GPTQMODEL,), {43}, {"SubnormalScale"},
        base | {"dtypes": {"scales": "BF16"}}, "checkpoint_goldens", x=x)  # fmt: skip
    x = (rng.standard_normal((3, 64)) * 1e6).astype(np.float32)
    add("large-outputs", "gptq_v2", w, tensors, "results beyond 65504 that pass through float16", (GPTQMODEL,), {43},
        {"Overflow"}, base, "checkpoint_goldens", x=x)  # fmt: skip

    fields, tensors, _ = layer(GOLD, "gptq-v2-act-order")
    params = base | {"group_size": 16, "sym": False, "desc_act": True}
    for shards in (1, 2):
        add(f"act-order-shards-{shards}", "gptq_v2", weights(fields, 16), tensors,
            "a shard of the inputs that counts its groups from its own first column", (GPTQMODEL,), {8},
            {"ActOrder", "Shards"}, params | {"shards": shards}, "checkpoint_goldens")  # fmt: skip
    fields, tensors, _ = layer(GOLD, "gptq-v2-ragged")
    add("shard-cuts-group", "gptq_v2", weights(fields, 64), tensors,
        "a shard boundary within a group: 96 columns in two shards of 48, groups of 64", (GPTQMODEL,), {9},
        {"ShardCutsGroup", "Shards"}, base | {"group_size": 64, "sym": False, "shards": 2}, "checkpoint_goldens",
        may_reject=True)  # fmt: skip
    fields, tensors, _ = layer(GOLD, "gptq-v2-row")
    add("group-minus-one", "gptq_v2", weights(fields, 64), tensors, "group_size -1 used as a number", (GPTQMODEL,),
        {10}, {"GroupMinusOne"}, base | {"group_size": -1, "sym": False}, "checkpoint_goldens")  # fmt: skip
    fields, tensors, _ = layer(MORE, "awq-and-gptq", "awq/")
    add("ramp", "awq", weights(fields, 32), tensors, "words or zero-points in plain order", (AUTOAWQ,), {21, 22},
        {"Interleave"}, {"bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
        "verify_goldens")  # fmt: skip
    return suite


SUITES = (matmul,)
