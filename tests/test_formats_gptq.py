"""GPTQ's layout against GPTQModel's own packer, a packer that goes bit by bit, and the mistakes of others."""

import numpy as np
import pytest
from goldens import CASES, changed, golden, quantized, same_numbers, same_tensors, slow_words
from hypothesis import given, settings
from hypothesis import strategies as st

import refquant as rq
from refquant import ops
from refquant.errors import BadFile, BadInput
from refquant.formats.bits import pack_words, unpack_words
from refquant.formats.gptq import GPTQ, load_zeros, store_zeros
from refquant.grids import IntGrid

GPTQ_CASES = [case for case in CASES if case.startswith("gptq-")]


def layout_of(case, **others):
    """The layout of a golden case, from its name."""
    version, kind = int(case[6]), case.split("-", 2)[2]
    bits = int(kind[0]) if "bit" in kind else 4
    size = {"ragged": 64, "row": None, "act-order": 16}.get(kind, 32)
    options = {"desc_act": kind == "act-order", "version": version}
    return GPTQ(bits, size, kind.endswith("-sym"), **options | others)


def random_layer(bits, sym=False, n=32, k=64, g=32, seed=0, zeros=None, g_idx=None):
    """A layer whose codes take every value, and its numbers."""
    rng = np.random.default_rng(seed)
    grid = IntGrid(bits, g, sym)
    groups = len(grid.starts(k))
    fields = {
        "codes": rng.integers(0, 1 << bits, (n, k)).astype(np.uint8),
        "scales": rng.uniform(1e-4, 1e-2, (n, groups)).astype(np.float16),
        "zeros": np.full((n, groups), 1 << bits - 1, np.uint8),
    }
    if not sym:
        fields["zeros"] = rng.integers(0, 1 << bits, (n, groups)).astype(np.uint8) if zeros is None else zeros
    if g_idx is not None:
        fields["g_idx"] = g_idx
    return quantized(grid, fields), fields


# ---- bytes


@pytest.mark.parametrize("case", GPTQ_CASES)
def test_gptqmodel_packs_the_same_bytes(case):
    fields, tensors = golden(case)
    layout = layout_of(case)
    q = quantized(layout.grid, fields)
    same_tensors(layout.write(q), tensors)
    same_numbers(layout.read(tensors), fields, fields["g_idx"])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_words_are_the_stream_bit_by_bit(bits, count, seed):
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (2, count)).astype(np.uint8)
    words = pack_words(codes, bits)
    np.testing.assert_array_equal(words, slow_words(codes, bits))
    np.testing.assert_array_equal(unpack_words(words, bits, count), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_run_down_columns_and_zero_points_along_rows(bits):
    q, fields = random_layer(bits)
    tensors = GPTQ.of(IntGrid(bits, 32), version=2).write(q)
    np.testing.assert_array_equal(tensors["qweight"].array.T, slow_words(fields["codes"], bits))
    np.testing.assert_array_equal(tensors["qzeros"].array, slow_words(fields["zeros"].T, bits))
    np.testing.assert_array_equal(tensors["scales"].array, fields["scales"].T)
    np.testing.assert_array_equal(tensors["g_idx"].array, np.repeat([0, 1], 32))


def test_case_05_32_codes_of_3_bits_are_the_published_triple_of_words():
    codes = np.arange(32, dtype=np.uint8) * 5 % 8
    c = [int(code) for code in codes]
    low = sum(c[j] << 3 * j for j in range(10)) | (c[10] & 3) << 30
    middle = c[10] >> 2 | sum(c[11 + j] << 3 * j + 1 for j in range(10)) | (c[21] & 1) << 31
    high = c[21] >> 1 | sum(c[22 + j] << 3 * j + 2 for j in range(10))
    want = np.array([low, middle, high], np.uint32).view(np.int32)
    np.testing.assert_array_equal(pack_words(codes, 3), want)
    q, _ = random_layer(3, n=32, k=32)
    fields = ops.unpack(q) | {"codes": np.tile(codes, (32, 1)), "zeros": codes[:, None]}
    tensors = GPTQ(3, 32, False, version=2).write(quantized(IntGrid(3, 32), fields))
    np.testing.assert_array_equal(tensors["qweight"].array, np.tile(want[:, None], (1, 32)))  # down each column
    np.testing.assert_array_equal(tensors["qzeros"].array, want[None])  # along the row


def test_case_05_versions_of_3_bits_differ_by_one_in_every_zero_point():
    zeros = np.tile(np.arange(32, dtype=np.uint8) % 7 + 1, (2, 1))
    np.testing.assert_array_equal(store_zeros(zeros, 3, 1), slow_words(zeros - 1, 3))


# ---- versions and zero-points


@pytest.mark.parametrize(("version", "word"), [(1, 0x77777777), (2, 0x88888888)])
def test_case_01_symmetric_zero_points_are_7_in_version_1_and_8_in_version_2(version, word):
    q, _ = random_layer(4, sym=True)
    layout = GPTQ(4, 32, True, version=version)
    tensors = layout.write(q)
    assert (tensors["qzeros"].array.view(np.uint32) == word).all()
    assert layout.config()["checkpoint_format"] == {1: "gptq", 2: "gptq_v2"}[version]
    assert GPTQ.from_config(layout.config()) == layout
    wrong = GPTQ(4, 32, True, version=3 - version)
    with pytest.raises(BadFile, match=f"they fit '{layout.config()['checkpoint_format']}': correct the config"):
        wrong.read(tensors)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("sym", [True, False])
def test_case_02_both_versions_of_the_same_numbers_decode_alike(bits, sym):
    q, _ = random_layer(bits, sym, n=64)
    first, second = (GPTQ(bits, 32, sym, version=version) for version in (1, 2))
    one, two = first.write(q), second.write(q)
    assert (one["qzeros"].array != two["qzeros"].array).any()
    want = ops.dequantize(q)
    np.testing.assert_array_equal(ops.dequantize(first.read(one)), want)
    np.testing.assert_array_equal(ops.dequantize(second.read(two)), want)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", [1, 2])
def test_case_03_a_group_of_positive_weights_has_zero_point_0_and_comes_back(bits, version):
    w = np.random.default_rng(bits).uniform(0.1, 1, (32, 64)).astype(np.float32)
    q = rq.quantize(w, f"int{bits}-g32")
    assert (ops.unpack(q)["zeros"] == 0).all()
    layout = GPTQ(bits, 32, False, version=version)
    back = layout.read(layout.write(q))
    np.testing.assert_array_equal(ops.dequantize(back), ops.dequantize(q))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", [1, 2])
def test_every_pair_of_neighbouring_zero_points_comes_back(bits, version):
    every = np.arange(1 << bits, dtype=np.uint8)
    zeros = np.stack([np.repeat(every, len(every)), np.tile(every, len(every))], axis=-1).reshape(1, -1)
    zeros = np.pad(zeros, [(0, 0), (0, -zeros.size % 32)])
    stored = store_zeros(zeros, bits, version)
    np.testing.assert_array_equal(load_zeros(stored, bits, version, zeros.size), zeros)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_version_1_without_a_zero_point_of_0_is_each_field_less_one(bits):
    """What every reader agrees on."""
    zeros = np.random.default_rng(0).integers(1, 1 << bits, (3, 32)).astype(np.uint8)
    np.testing.assert_array_equal(store_zeros(zeros, bits, 1), slow_words(zeros - 1, bits))


def test_case_07_a_symmetric_result_does_not_depend_on_zero_points_declared_ignored():
    q, _ = random_layer(4, sym=True)
    layout = GPTQ(4, 32, True, ignore_zeros=True)
    tensors = layout.write(q)
    noise = np.random.default_rng(1).integers(-(2**31), 2**31, tensors["qzeros"].shape).astype(np.int32)
    x = np.random.default_rng(2).normal(size=(5, 64)).astype(np.float32)
    scrambled = changed(tensors, qzeros=noise)
    np.testing.assert_array_equal(rq.matmul(x, layout.read(scrambled)), rq.matmul(x, q))
    with pytest.raises(BadFile, match=r"sym is true.*; it is damaged, or not symmetric"):
        GPTQ(4, 32, True).read(scrambled)


def test_case_13_code_8_is_exactly_zero_in_a_symmetric_file():
    q, fields = random_layer(4, sym=True)
    layout = GPTQ(4, 32, True)
    w = ops.dequantize(layout.read(layout.write(q)))
    scale = np.repeat(fields["scales"].astype(np.float32), 32, axis=1)
    assert (w[fields["codes"] == 8] == 0).all()
    np.testing.assert_array_equal(w[fields["codes"] == 0], -8 * scale[fields["codes"] == 0])
    np.testing.assert_array_equal(w[fields["codes"] == 15], 7 * scale[fields["codes"] == 15])


# ---- groups


@pytest.mark.parametrize("sym", [True, False])
def test_case_10_group_size_minus_one_is_the_whole_row_in_the_file(sym):
    q, fields = random_layer(4, sym, k=64, g=None)
    row, named = GPTQ.of(IntGrid(4, -1, sym)), GPTQ.of(IntGrid(4, 64, sym))
    assert row.config()["group_size"] == -1
    assert named.config()["group_size"] == 64
    assert GPTQ.from_config(row.config()).group_size is None
    tensors = row.write(q)
    same_tensors(named.write(quantized(named.grid, fields)), tensors)
    np.testing.assert_array_equal(ops.dequantize(row.read(tensors)), ops.dequantize(named.read(tensors)))


def test_case_11_the_last_group_of_192_inputs_by_128_is_short():
    q, fields = random_layer(4, k=192, g=128)
    layout = GPTQ(4, 128, False)
    tensors = layout.write(q)
    assert tensors["scales"].shape == (2, 32)  # ceil(192 / 128)
    assert tensors["qzeros"].shape == (2, 4)
    back = ops.dequantize(layout.read(tensors))
    scale, zero = (fields[name].astype(np.float32)[:, 1:] for name in ("scales", "zeros"))
    np.testing.assert_array_equal(back[:, 128:], (fields["codes"][:, 128:] - zero) * scale)


def test_case_08_an_act_order_layer_cut_along_its_inputs_multiplies_like_the_whole():
    """Each shard keeps the whole scales, and the part of g_idx that belongs to its inputs."""
    g_idx = np.random.default_rng(3).permutation(np.arange(128) // 32).astype(np.int32)
    q, _ = random_layer(4, k=128, g_idx=g_idx)
    tensors = GPTQ(4, 32, False, desc_act=True).write(q)
    x = np.random.default_rng(4).normal(size=(3, 128)).astype(np.float32)
    total = np.zeros((3, 32), np.float64)
    for start in (0, 64):
        fields = ops.unpack(GPTQ(4, 32, False, desc_act=True).read(tensors))
        part = slice(start, start + 64)
        sub = {
            "codes": unpack_words(tensors["qweight"].array[start // 8 : start // 8 + 8].T, 4, 64),
            "scales": fields["scales"][:, fields["g_idx"][part]],
            "zeros": fields["zeros"][:, fields["g_idx"][part]],
        }
        shard = quantized(IntGrid(4, 1), sub)  # every column its own group
        total += rq.matmul(x[:, part], shard)
    np.testing.assert_allclose(total, rq.matmul(x, q), rtol=0, atol=2e-6)


def test_case_09_a_shard_that_cuts_a_group_is_refused():
    """Inputs 0..95 of 128 in groups of 64: one and a half groups, but the scales of two, are not a layer of 96 by 64.

    The shapes alone agree (a short last group), so the map of columns is what tells.
    """
    q, _ = random_layer(4, k=192, g=64)
    tensors = GPTQ(4, 64, False).write(q)
    second_half = changed(
        tensors,
        qweight=tensors["qweight"].array[96 // 8 :],
        qzeros=tensors["qzeros"].array[1:],
        scales=tensors["scales"].array[1:],
        g_idx=tensors["g_idx"].array[96:] - 1,
    )
    with pytest.raises(BadFile, match="g_idx is not column // group_size"):
        GPTQ(4, 64, False).read(second_half)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"g_idx": None}, "g_idx is missing"),
        ({"g_idx": np.full(64, 2, np.int32)}, r"g_idx\[0\] is 2; there are 2 groups"),
        ({"g_idx": np.full(64, -1, np.int32)}, r"g_idx\[0\] is -1"),
        ({"g_idx": np.zeros(63, np.int32)}, r"g_idx must be I32 \[64\], got I32 \[63\]"),
        ({"g_idx": np.zeros(64, np.int64)}, r"g_idx must be I32 \[64\], got I64 \[64\]"),
    ],
)
def test_case_12_g_idx_is_there_when_needed_and_in_range(change, complaint):
    g_idx = np.random.default_rng(3).permutation(np.arange(64) // 32).astype(np.int32)
    q, _ = random_layer(4, g_idx=g_idx)
    layout = GPTQ(4, 32, False, desc_act=True)
    tensors = layout.write(q)
    np.testing.assert_array_equal(np.bincount(tensors["g_idx"].array), [32, 32])
    np.testing.assert_array_equal(ops.unpack(layout.read(tensors))["g_idx"], g_idx)
    with pytest.raises(BadFile, match=complaint):
        layout.read(changed(tensors, **change))


def test_case_12_a_map_where_desc_act_is_false_is_refused_both_ways():
    g_idx = np.random.default_rng(3).permutation(np.arange(64) // 32).astype(np.int32)
    q, _ = random_layer(4, g_idx=g_idx)
    with pytest.raises(BadInput, match="desc_act must be true"):
        GPTQ(4, 32, False).write(q)
    tensors = GPTQ(4, 32, False, desc_act=True).write(q)
    with pytest.raises(BadFile, match="desc_act is false, but g_idx"):
        GPTQ(4, 32, False).read(tensors)


# ---- shapes, types, configs


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"qzeros": np.zeros((2, 32), np.uint8)}, r"qzeros must be I32 \[2, 4\], got U8 \[2, 32\]"),  # unpacked
        ({"qzeros": np.zeros((2, 32), np.int32)}, r"qzeros must be I32 \[2, 4\], got I32 \[2, 32\]"),
        ({"qzeros": None}, "qzeros is missing"),
        ({"scales": np.zeros((32, 2), np.float16)}, r"scales must be F16 or BF16 or F32 \[2, 32\]"),
        ({"scales": np.full((2, 32), np.nan, np.float16)}, "scales hold NaN"),
        ({"qweight": np.zeros((8, 31), np.int32)}, "31 out_features"),
        ({"qweight": np.zeros(8, np.int32)}, r"qweight must be \[in \* 4 / 32, out\], got \[8\]"),
        ({"qweight": None}, "qweight must be"),
        ({"zeros": np.zeros(4, np.int32)}, "zeros is left over"),
    ],
)
def test_case_06_every_tensor_has_the_type_and_shape_of_the_config(change, complaint):
    q, _ = random_layer(4)
    tensors = GPTQ(4, 32, False).write(q)
    with pytest.raises(BadFile, match=complaint):
        GPTQ(4, 32, False).read(changed(tensors, **change))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_case_06_the_width_of_the_config_must_be_that_of_the_tensors(bits):
    q, _ = random_layer(bits, n=64, k=96)
    tensors = GPTQ(bits, 32, False).write(q)
    for other in {2, 3, 4, 8} - {bits}:
        with pytest.raises(BadFile):
            GPTQ(other, 32, False).read(tensors)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"bits": 5}, "bits 5"),
        ({"bits": "4"}, "bits must be int"),
        ({"bits": True}, "bits must be int"),
        ({"group_size": 0}, "group_size must be a positive integer"),
        ({"group_size": -64}, "or -1 for the whole row, got -64"),
        ({"group_size": 2.5}, "group_size must be int"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'; known: gptq, gptq_v2"),
        ({"dynamic": {"-:lm_head": {}}}, "dynamic"),
        ({"pack_dtype": "int64"}, "only int32"),
        ({"sym": 1}, "sym must be bool"),
    ],
)
def test_configs_that_are_not_read_are_refused_by_name(config, complaint):
    with pytest.raises(BadFile, match=complaint):
        GPTQ.from_config({"bits": 4, "group_size": 32} | config)


@pytest.mark.parametrize(("n", "k", "complaint"), [(32, 60, "60 in_features"), (30, 64, "30 out_features")])
def test_sizes_that_do_not_fill_words_are_refused(n, k, complaint):
    q, _ = random_layer(4, n=n, k=k, g=None)
    with pytest.raises(BadInput, match=complaint):
        GPTQ(4, None, False).write(q)


def test_another_grid_and_another_width_are_refused():
    q, _ = random_layer(4)
    with pytest.raises(BadInput, match="this checkpoint is int4-g64, the layer int4-g32"):
        GPTQ(4, 64, False).write(q)
    with pytest.raises(BadInput, match="2, 3, 4 or 8 bits, not 5"):
        GPTQ.of(IntGrid(5, 32))


def test_scales_keep_the_narrowest_type_that_holds_them():
    _, fields = random_layer(4)
    for scales, dtype in ((fields["scales"], "F16"), (fields["scales"].astype(np.float32) * 1e-7, "F32")):
        back = quantized(IntGrid(4, 32), fields | {"scales": scales})
        tensors = GPTQ(4, 32, False).write(back)
        assert tensors["scales"].dtype == dtype
        same_numbers(GPTQ(4, 32, False).read(tensors), fields | {"scales": scales})
    scales = np.full((32, 2), 2.0**-100, np.float32)  # not in float16, but in bfloat16
    assert GPTQ(4, 32, False).write(quantized(IntGrid(4, 32), fields | {"scales": scales}))["scales"].dtype == "BF16"


@pytest.mark.parametrize("layout", [GPTQ(4, 32, False), GPTQ(4, 32, True, version=2)])
def test_case_47_the_kind_of_zero_point_is_part_of_the_layout(layout):
    assert layout.zero_domain == "integer"
