"""AWQ's layouts against AutoAWQ's own packers, worked words, and the mistakes of others."""

import numpy as np
import pytest
from goldens import CASES, changed, golden, quantized, same_numbers, same_tensors

from refquant import ops
from refquant.errors import BadFile, BadInput
from refquant.formats import file_tensor
from refquant.formats.awq import AWQ, TinyChat, pack_outputs, unpack_outputs
from refquant.formats.gptq import GPTQ
from refquant.grids import IntGrid


def numbers(n=32, k=128, g=64, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "codes": rng.integers(0, 16, (n, k)).astype(np.uint8),
        "scales": rng.uniform(1e-4, 1e-2, (n, k // g)).astype(np.float16),
        "zeros": rng.integers(0, 16, (n, k // g)).astype(np.uint8),
    }


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("awq-")])
def test_autoawq_packs_the_same_bytes(case):
    fields, tensors = golden(case)
    layout = AWQ(4, int(case[5:]), False)
    same_tensors(layout.write(quantized(layout.grid, fields)), tensors)
    same_numbers(layout.read(tensors), fields)


def test_case_21_codes_0_to_7_in_columns_0_to_7_pack_to_0x75316420():
    words = pack_outputs(np.arange(8, dtype=np.uint8)[None])
    assert words.view(np.uint32).item() == 0x75316420
    np.testing.assert_array_equal(unpack_outputs(words), [np.arange(8)])


def slot_of(column):
    """Where AWQ keeps column 8c + `column`: even columns in the low half of the word, odd ones in the high half."""
    return column // 2 + 4 * (column % 2)


def test_case_22_codes_and_zero_points_are_interleaved_alike():
    """Every nibble of both tensors, found one by one, from random codes."""
    fields = numbers()
    tensors = AWQ(4, 64, False).write(quantized(IntGrid(4, 64), fields))
    for name, values in (("qweight", fields["codes"].T), ("qzeros", fields["zeros"].T)):
        words = tensors[name].array.view(np.uint32)
        for (row, column), value in np.ndenumerate(values):
            assert int(words[row, column // 8]) >> 4 * slot_of(column % 8) & 15 == value


@pytest.mark.parametrize("g", [64, 128])
def test_case_23_both_layouts_decode_to_the_same_integers(g):
    fields, tinychat = golden(f"tinychat-g{g}")
    same, gemm = golden(f"awq-g{g}")
    one, two = TinyChat(4, g, False).read(tinychat), AWQ(4, g, False).read(gemm)
    same_numbers(one, fields)
    same_numbers(two, same)
    for name, value in fields.items():
        np.testing.assert_array_equal(value, same[name])
    np.testing.assert_array_equal(ops.dequantize(one), ops.dequantize(two))


def test_tinychat_under_llm_awqs_name_and_with_rounded_products():
    """Scales with all their bits: -zero * scale is rounded to float16, and the integer still comes back."""
    fields, tensors = golden("tinychat-g128")
    scales = np.random.default_rng(5).uniform(1e-4, 1e-2, fields["scales"].shape).astype(np.float16)
    padded = np.zeros(tensors["scales"].shape, np.float16)
    padded[:1] = scales.T
    zeros = np.zeros_like(padded)
    zeros[:1] = -(scales.astype(np.float32) * fields["zeros"]).T.astype(np.float16)
    named = {"qweight": tensors["qweight"], "scales": file_tensor.of(padded), "scaled_zeros": file_tensor.of(zeros)}
    q = TinyChat(4, 128, False).read(named)
    same_numbers(q, fields | {"scales": scales})
    assert TinyChat(4, 128, False).problems(named) == []
    kernel = fields["codes"] * scales.astype(np.float32) + zeros[:1].T.astype(np.float32)  # what TinyChat computes
    step = np.spacing(np.abs(zeros[:1]).T.max(axis=1, keepdims=True)).astype(np.float32)
    assert (np.abs(ops.dequantize(q) - kernel) <= step / 2).all()


def test_case_47_tinychats_zero_points_are_floats_and_gemms_are_integers():
    assert AWQ(4, 64, False).zero_domain == "integer"
    assert TinyChat(4, 64, False).zero_domain == "float, -zero * scale"
    fields, tensors = golden("tinychat-g128")
    mid = -(fields["scales"].astype(np.float32) * (fields["zeros"] + 0.5)).T.astype(np.float16)  # a float zero-point
    zeros = tensors["qzeros"].array.copy()
    zeros[:1] = mid
    with pytest.raises(BadFile, match="not -scale times an integer"):
        TinyChat(4, 128, False).read(changed(tensors, qzeros=zeros))


@pytest.mark.parametrize("version", [1, 2])
def test_case_04_all_16_zero_points_survive_the_repack_to_gptq(version):
    fields = numbers(n=32, k=64, g=32)
    fields["zeros"] = np.arange(64, dtype=np.uint8).reshape(32, 2) % 16  # each value, 0 too, and each neighbour
    awq, gptq = AWQ(4, 32, False), GPTQ(4, 32, False, version=version)
    tensors = awq.write(quantized(awq.grid, fields))
    there = gptq.write(awq.read(tensors))
    want = (fields["codes"] - np.repeat(fields["zeros"], 32, axis=1).astype(np.float32)) * np.repeat(
        fields["scales"].astype(np.float32), 32, axis=1
    )
    np.testing.assert_array_equal(ops.dequantize(gptq.read(there)), want)
    same_tensors(awq.write(gptq.read(there)), tensors)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"qzeros": None}, "qzeros is missing"),
        ({"qzeros": np.zeros((2, 32), np.int32)}, r"qzeros must be I32 \[2, 4\], got I32 \[2, 32\]"),
        ({"scales": np.zeros((4, 32), np.float16)}, r"scales must be F16 or BF16 or F32 \[2, 32\]"),
        ({"qweight": np.zeros((100, 4), np.int32)}, "in a multiple of the group size, 64"),
        ({"g_idx": np.zeros(128, np.int32)}, "g_idx is left over"),
        ({"scales": np.full((2, 32), np.inf, np.float16)}, "scales hold NaN or infinity"),
    ],
)
def test_case_06_every_tensor_has_the_type_and_shape_of_the_config(change, complaint):
    layout = AWQ(4, 64, False)
    tensors = layout.write(quantized(layout.grid, numbers()))
    with pytest.raises(BadFile, match=complaint):
        layout.read(changed(tensors, **change))


@pytest.mark.parametrize("size", [-1, 64])
def test_case_10_group_size_minus_one_is_the_whole_row(size):
    layout = AWQ.of(IntGrid(4, size))
    assert layout.config()["group_size"] == size
    assert AWQ.from_config(layout.config()) == layout
    fields = numbers(k=64)
    same_numbers(layout.read(layout.write(quantized(layout.grid, fields))), fields)


def test_what_awq_cannot_hold_is_refused():
    g_idx = np.random.default_rng(1).permutation(np.arange(128) // 64).astype(np.int32)
    layout = AWQ(4, 64, False)
    with pytest.raises(BadInput, match="act-order"):
        layout.write(quantized(layout.grid, numbers() | {"g_idx": g_idx}))
    with pytest.raises(BadInput, match="4 bits, not 3"):
        AWQ.of(IntGrid(3, 64))
    ragged = quantized(IntGrid(4, 128), {name: v[:, :192] for name, v in numbers(k=256, g=128).items()})
    with pytest.raises(BadInput, match="in a multiple of the group size"):
        AWQ(4, 128, False).write(ragged)
    with pytest.raises(BadInput, match="read, not written"):
        TinyChat(4, 128, False).write(ragged)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [({"bits": 8}, "bits 8"), ({"version": "gemv"}, "known: gemm, gemv_fast"), ({"group_size": "x"}, "must be int")],
)
def test_configs_that_are_not_read_are_refused_by_name(config, complaint):
    with pytest.raises(BadFile, match=complaint):
        AWQ.from_config({"quant_method": "awq", "group_size": 64} | config)


def test_llm_awqs_own_key_names_are_read():
    assert AWQ.from_config({"w_bit": 4, "q_group_size": 32, "version": "GEMM"}) == AWQ(4, 32, False)
    assert AWQ.from_config({"bits": 4, "version": "gemv_fast"}) == TinyChat(4, 128, False)
