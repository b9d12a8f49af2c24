"""The uniform grids in memory: their bytes, g_idx, and what becomes of both when a matrix is split between devices."""

import numpy as np
import pytest

from refquant import ops
from refquant.errors import BadInput
from refquant.formats import uniform
from refquant.methods import gptq, rtn
from refquant.quantized import Quantized, find_format

W = np.random.default_rng(0).normal(size=(6, 96)).astype(np.float32)


def test_the_bytes_worked_by_hand():
    fields = {
        "codes": np.array([[1, 2, 3, 4, 5]], np.uint8),
        "scales": np.array([[0.5, 2, 1]], np.float16),
        "zeros": np.array([[1, 15, 0]], np.uint8),
    }
    q = ops.pack(fields, "int4-g2", (1, 5))
    assert q.arrays["codes"].tolist() == [[0x21, 0x43, 0x05]]
    assert q.arrays["zeros"].tolist() == [[0xF1, 0x00]]
    assert q.nbytes == 3 + 6 + 2
    assert ops.dequantize(q).tolist() == [[0, 0.5, -24, -22, 5]]


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("int4-g128", 4.15625),
        ("int4-g128-sym", 4.125),
        ("int3-g128", 3.1484375),
        ("int8-g32", 8.75),
        ("int2-g64-sym", 2.25),
    ],
)
def test_bits_per_weight_of_the_real_arrays(name, bits):
    q = rtn.quantize(np.random.default_rng(1).normal(size=(4, 1024)).astype(np.float32), name)
    assert q.bits_per_weight == find_format(name).bits_per_weight((4, 1024)) == bits
    assert q.nbytes == sum(array.nbytes for array in q.arrays.values())


def test_a_g_idx_that_says_nothing_is_not_stored():
    fields = ops.unpack(rtn.quantize(W, "int4-g32"))
    assert "g_idx" not in ops.pack(fields, "int4-g32", W.shape).arrays
    fields["g_idx"] = fields["g_idx"][::-1]
    assert ops.pack(fields, "int4-g32", W.shape).arrays["g_idx"].tolist() == fields["g_idx"].tolist()


@pytest.mark.parametrize("wrong", [-1, 3])
def test_case_12_g_idx_out_of_range_is_refused(wrong):
    arrays = rtn.quantize(W, "int4-g32").arrays
    g_idx = np.full(96, wrong, np.int32)
    with pytest.raises(BadInput, match=r"0\.\.2"):
        ops.dequantize(Quantized("int4-g32", W.shape, arrays | {"g_idx": g_idx}))


def act_order_layer():
    rng = np.random.default_rng(2)
    x = (rng.normal(size=(200, 96)) * np.exp(rng.normal(size=96))).astype(np.float32)
    return x, gptq.quantize(W, gptq.hessian(x), "int4-g32", act_order=True).quantized


def test_case_08_row_shards_of_an_act_order_matrix_add_up():
    """Each device holds a range of the inputs, their g_idx, and the scales of all groups: any group may be needed."""
    x, q = act_order_layer()
    fields = ops.unpack(q)
    whole = ops.matmul(x, q)
    for cuts in ([0, 48, 96], [0, 40, 41, 96]):
        total = 0
        for part in map(slice, cuts, cuts[1:]):
            shard = fields | {"codes": fields["codes"][:, part], "g_idx": fields["g_idx"][part]}
            total = total + x[:, part] @ uniform.decode(shard, q.format).T
        np.testing.assert_allclose(total, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_case_08_columns_sorted_by_group_shard_without_g_idx():
    x, q = act_order_layer()
    fields = ops.unpack(q)
    order = np.argsort(fields["g_idx"], kind="stable")
    total = 0
    for g, part in [(slice(0, 2), order[:64]), (slice(2, 3), order[64:])]:
        shard = {"codes": fields["codes"][:, part], "scales": fields["scales"][:, g], "zeros": fields["zeros"][:, g]}
        total = total + ops.matmul(x[:, part], ops.pack(shard, "int4-g32", (6, len(part))))
    whole = ops.matmul(x, q)
    np.testing.assert_allclose(total, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_case_09_a_shard_that_splits_a_group_needs_the_scales_of_every_group_it_touches():
    q = rtn.quantize(W, "int4-g32")
    fields = ops.unpack(q)
    part, half = slice(48, 96), {"codes": fields["codes"][:, 48:]}
    with pytest.raises(BadInput, match=r"scales must be .* \[6, 2\]"):  # 48 / 32 rounded down: 1 scale
        ops.pack(half | {name: fields[name][:, 2:] for name in ("scales", "zeros")}, "int4-g32", (6, 48))
    shard = half | {name: fields[name][:, 1:] for name in ("scales", "zeros")} | {"g_idx": fields["g_idx"][part] - 1}
    decoded = ops.dequantize(ops.pack(shard, "int4-g32", (6, 48)))
    np.testing.assert_array_equal(decoded, ops.dequantize(q)[:, part])
