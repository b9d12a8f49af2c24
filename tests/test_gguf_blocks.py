"""Block formats: bytes to fields to weights, against ggml's own decoder and gguf-py's."""

import ggml
import gguf
import numpy as np
import pytest

import refquant as rq
from refquant import casts, ops
from refquant.errors import BadInput, UnknownName

# name: weights a block, bytes a block, bits a weight; the numbers as ggml's static assertions and comments give them
TABLE = {
    "F32": (1, 4, 32.0),
    "F16": (1, 2, 16.0),
    "BF16": (1, 2, 16.0),
    "Q4_0": (32, 18, 4.5),
    "Q4_1": (32, 20, 5.0),
    "Q5_0": (32, 22, 5.5),
    "Q5_1": (32, 24, 6.0),
    "Q8_0": (32, 34, 8.5),
    "Q2_K": (256, 84, 2.625),
    "Q3_K": (256, 110, 3.4375),
    "Q4_K": (256, 144, 4.5),
    "Q5_K": (256, 176, 5.5),
    "Q6_K": (256, 210, 6.5625),
    "IQ4_NL": (32, 18, 4.5),
    "IQ4_XS": (256, 136, 4.25),
    "TQ1_0": (256, 54, 1.6875),
    "TQ2_0": (256, 66, 2.0625),
    "MXFP4": (32, 17, 4.25),
}
# where the float16 numbers of a block lie
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "TQ1_0": [52], "TQ2_0": [64],
}  # fmt: skip
SPECIAL = np.array(
    [
        0x0000,
        0x8000,
        0x0001,
        0x8001,
        0x03FF,
        0x0400,
        0x3C00,
        0x7BFF,
        0xFBFF,
        0x7C00,
        0xFC00,
        0x7E00,
        0xFE00,
        0x7C01,
        0xFDFF,
    ],
    "<u2",
)  # zeros, subnormals, the largest, infinities, NaN with and without the quiet bit


def random_bytes(rng, name, blocks):
    """Random bytes are legal blocks. A quarter get special float16 numbers; else 1 in 32 is NaN or infinite."""
    data = rng.integers(0, 256, (blocks, TABLE[name][1]), dtype=np.uint8)
    for offset in HALVES.get(name, []):
        chosen = rng.random(blocks) < 0.25
        data[chosen, offset : offset + 2] = rng.choice(SPECIAL, chosen.sum()).view(np.uint8).reshape(-1, 2)
    return data


def wrap(data, name, per_row=1):
    weights, size, _ = TABLE[name]
    data = data.reshape(-1, per_row * size)
    return rq.Quantized.from_bytes(data, name, (len(data), per_row * weights))


def block(name, **fields):
    """One block from its fields."""
    fields = {key: np.asarray(value)[None] for key, value in fields.items()}
    return ops.pack(fields, name, (1, TABLE[name][0]))


def bits(x):
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


@pytest.mark.parametrize("name", TABLE)
def test_decode_equals_ggml_bit_for_bit(name, full):
    per_row = 8 if TABLE[name][0] > 1 else 1024
    data = random_bytes(np.random.default_rng(1), name, 131_072 if full else 8192 if per_row == 1024 else 1024)
    q = wrap(data, name, per_row)
    got, want = rq.dequantize(q), ggml.dequantize(q.arrays["blocks"], name)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(bits(got), bits(want))
    if name not in ("MXFP4", "F32"):
        assert np.isnan(got).any()  # the special scales did arrive


@pytest.mark.parametrize("name", TABLE)
def test_decode_equals_gguf_py(name):
    """A second program, written apart from ggml's C code. It is NumPy, so NaN is compared as NaN only."""
    data = random_bytes(np.random.default_rng(2), name, 256)
    with np.errstate(all="ignore"):
        want = gguf.dequantize(data.view(np.float32) if name == "F32" else data, ggml.TYPES[name])
    np.testing.assert_array_equal(rq.dequantize(wrap(data, name)), want)


@pytest.mark.parametrize("name", TABLE)
def test_pack_is_the_inverse_of_unpack_on_random_bytes(name):
    data = random_bytes(np.random.default_rng(3), name, 256)
    if name == "TQ1_0":  # of 256 byte values, 243 are five trits and 81 are four
        value = np.arange(243) * 256
        five = -(-value // 243)
        data[:, :48] = np.random.default_rng(4).choice(five, (256, 48))
        data[:, 48:52] = np.random.default_rng(5).choice(five[::3], (256, 4))
    q = wrap(data, name, per_row=4)
    again = ops.pack(ops.unpack(q), name, q.shape)
    np.testing.assert_array_equal(again.arrays["blocks"], q.arrays["blocks"])
    assert again.to_bytes() == data.tobytes()


@pytest.mark.parametrize("name", TABLE)
def test_sizes_are_those_of_gguf_py(name):
    weights, size, bits_per_weight = TABLE[name]
    assert ggml.sizes(name) == (weights, size)
    q = wrap(np.zeros((6, size), np.uint8), name, per_row=3)
    assert q.nbytes == 6 * size
    assert q.bits_per_weight == bits_per_weight


def test_case_35_every_type_is_there():
    assert set(TABLE) <= set(rq.formats())
    assert {"Q4_1", "TQ1_0", "IQ4_XS", "MXFP4"} <= set(rq.formats())


def test_case_34_an_unknown_type_is_refused_and_does_not_become_f32():
    for name in ("Q9_K", "q4_K", "Q4_2", "IQ2_XXS", "", 12, None):
        with pytest.raises(UnknownName, match="Q4_K"):
            rq.Quantized.from_bytes(bytes(144), name, (1, 256))
        with pytest.raises(UnknownName):
            rq.quantize(np.zeros((1, 256), np.float32), name)


@pytest.mark.parametrize("name", [name for name, (weights, _, _) in TABLE.items() if weights > 1])
def test_a_width_that_no_block_divides_is_refused_with_the_multiple(name):
    weights = TABLE[name][0]
    for k in (1, weights - 1, weights + 1, weights * 3 // 2):
        with pytest.raises(BadInput, match=f"{name}: a row must be a multiple of {weights} weights wide, got {k}"):
            rq.quantize(np.ones((2, k), np.float32), name)
    with pytest.raises(BadInput, match="expected"):
        rq.Quantized.from_bytes(bytes(TABLE[name][1] - 1), name, (1, weights))


@pytest.mark.parametrize(
    ("name", "top"), [("Q4_0", 15), ("Q5_1", 31), ("Q2_K", 3), ("Q3_K", 7), ("Q6_K", 63), ("TQ1_0", 2)]
)
def test_a_code_too_large_for_its_bits_is_refused(name, top):
    fields = ops.unpack(wrap(np.zeros((1, TABLE[name][1]), np.uint8), name))
    fields["codes"] = np.full(fields["codes"].shape, top, np.uint8)
    ops.pack(fields, name, (1, TABLE[name][0]))
    fields["codes"][0, 5] = top + 1
    with pytest.raises(BadInput, match=f"0..{top}"):
        ops.pack(fields, name, (1, TABLE[name][0]))


# ---- the mistakes of CASES.md


def test_case_27_q3_k_scales_have_six_bits():
    scales = np.arange(-32, 32, 4)  # all sixteen different; four bits would fold them onto four
    q = block("Q3_K", d=np.float16([1]), scales=scales[None], codes=np.full(256, 5))
    np.testing.assert_array_equal(rq.dequantize(q)[0], np.repeat(scales, 16))  # (1 * scale) * (5 - 4)
    np.testing.assert_array_equal(rq.dequantize(q), ggml.dequantize(q.arrays["blocks"], "Q3_K"))
    data = random_bytes(np.random.default_rng(27), "Q3_K", 500)
    np.testing.assert_array_equal(bits(rq.dequantize(wrap(data, "Q3_K"))), bits(ggml.dequantize(data, "Q3_K")))


def test_case_28_q4_k_has_eight_distinct_scales_and_mins():
    scales, mins = np.array([16, 21, 26, 31, 36, 47, 58, 63]), np.array([63, 57, 51, 45, 39, 33, 27, 21])
    q = block(
        "Q4_K",
        d=np.float16([0.5]),
        dmin=np.float16([0.25]),
        scales=scales[None],
        mins=mins[None],
        codes=np.full(256, 9),
    )
    # by hand, from the bit diagram: 16 + (36 >> 4 << 6), ...; 63 + (39 >> 4 << 6), ...; (36 & 15) + (39 & 15) * 16, ...
    assert q.arrays["blocks"][0, 4:16].tolist() == [144, 149, 218, 223, 191, 185, 115, 109, 116, 31, 186, 95]
    np.testing.assert_array_equal(rq.dequantize(q)[0], np.repeat(0.5 * scales * 9 - 0.25 * mins, 32))
    np.testing.assert_array_equal(rq.dequantize(q), ggml.dequantize(q.arrays["blocks"], "Q4_K"))


def test_case_29_q2_k_has_sixteen_scales_and_mins():
    scales, mins, codes = np.arange(16), np.arange(15, -1, -1), np.arange(256) // 3 % 4
    q = block("Q2_K", d=np.float16([2]), dmin=np.float16([1]), scales=scales[None], mins=mins[None], codes=codes)
    assert q.arrays["blocks"][0, :16].tolist() == [16 * m + s for s, m in zip(scales, mins, strict=True)]
    np.testing.assert_array_equal(rq.dequantize(q)[0], 2 * np.repeat(scales, 16) * codes - np.repeat(mins, 16))
    np.testing.assert_array_equal(rq.dequantize(q), ggml.dequantize(q.arrays["blocks"], "Q2_K"))


def test_case_30_q5_k_codes_lie_in_planes_of_32():
    codes = np.arange(256) % 32
    ones, zeros = np.ones((1, 8), np.uint8), np.zeros((1, 8), np.uint8)
    q = block("Q5_K", d=np.float16([1]), dmin=np.float16([0]), scales=ones, mins=zeros, codes=codes)
    np.testing.assert_array_equal(ggml.dequantize(q.arrays["blocks"], "Q5_K")[0], codes)
    np.testing.assert_array_equal(rq.dequantize(q)[0], codes)


def test_case_31_q5_k_fifth_bits_belong_to_their_own_sub_block():
    for sub in range(8):  # only one sub-block has codes above 15: bit `sub` of every byte of qh
        codes = np.where(np.arange(256) // 32 == sub, 16 + np.arange(256) % 16, np.arange(256) % 16)
        q = block(
            "Q5_K",
            d=np.float16([1]),
            dmin=np.float16([0]),
            scales=np.ones((1, 8), int),
            mins=np.zeros((1, 8), int),
            codes=codes,
        )
        assert (q.arrays["blocks"][0, 16:48] == 1 << sub).all()
        np.testing.assert_array_equal(ggml.dequantize(q.arrays["blocks"], "Q5_K")[0], codes)


def test_case_32_three_blocks_a_row_and_the_ramp_of_q4_0():
    codes = np.arange(96) % 16
    q = ops.pack({"d": np.float16([[1, 2, 3]]), "codes": codes[None]}, "Q4_0", (1, 96))
    assert q.nbytes == 3 * 18
    assert q.arrays["blocks"][0, 2:18].tolist() == [0x11 * j for j in range(16)]  # code j and code j + 16 share byte j
    want = (codes - 8) * np.repeat([1, 2, 3], 32)  # excess 8; every block of the row
    np.testing.assert_array_equal(rq.dequantize(q)[0], want)
    np.testing.assert_array_equal(ggml.dequantize(q.arrays["blocks"], "Q4_0")[0], want)


def test_case_33_q4_k_is_not_d_q_minus_dmin():
    codes, threes, fives = np.arange(256) % 16, np.full((1, 8), 3), np.full((1, 8), 5)
    q = block("Q4_K", d=np.float16([0.5]), dmin=np.float16([0.25]), scales=threes, mins=fives, codes=codes)
    np.testing.assert_array_equal(rq.dequantize(q)[0], 1.5 * codes - 1.25)
    np.testing.assert_array_equal(ggml.dequantize(q.arrays["blocks"], "Q4_K")[0], 1.5 * codes - 1.25)


# ---- casts

TIES = {  # float32 -> float16 bits, worked from the definition: ties to even, subnormals, overflow, signed zero
    1 + 2**-11: 0x3C00, 1 + 3 * 2**-11: 0x3C02, 1 + 2**-11 + 2**-23: 0x3C01, 2049.0: 0x6800, 2051.0: 0x6802,
    65504.0: 0x7BFF, 65519.996: 0x7BFF, 65520.0: 0x7C00, -65520.0: 0xFC00, 3.4e38: 0x7C00,
    2**-24: 0x0001, 2**-25: 0x0000, 2**-25 * (1 + 2**-23): 0x0001, 3 * 2**-25: 0x0002, 2**-14: 0x0400,
    2**-14 - 2**-25: 0x0400, 2**-14 - 2**-24: 0x03FF, -0.0: 0x8000, -(2**-24): 0x8001, 1e-45: 0x0000,
}  # fmt: skip
BRAIN_TIES = {  # float32 bits -> bfloat16 bits
    0x3F80_8000: 0x3F80, 0x3F81_8000: 0x3F82, 0x3F80_8001: 0x3F81, 0x3F80_7FFF: 0x3F80, 0x7F7F_8000: 0x7F80,
    0x7F7F_7FFF: 0x7F7F, 0xFF7F_FFFF: 0xFF80, 0x7F80_0000: 0x7F80, 0x0000_8000: 0x0000, 0x0001_8000: 0x0002,
    0x0000_8001: 0x0001, 0x8000_0000: 0x8000, 0x7F80_0001: 0x7FC0, 0xFFC1_2345: 0xFFC1, 0x7FFF_FFFF: 0x7FFF,
}  # fmt: skip


def test_case_41_ties_round_to_even_and_nan_stays_nan():
    half = casts.to_float16(np.array(list(TIES), np.float32)).view(np.uint16)
    assert half.tolist() == list(TIES.values())
    nan = np.array([0x7F80_0001, 0x7FC0_0000, 0xFF80_0001, 0xFFFF_FFFF], np.uint32).view(np.float32)
    assert casts.to_float16(nan).view(np.uint16).tolist() == [0x7E00, 0x7E00, 0xFE00, 0xFE00]
    brain = casts.to_bfloat16(np.array(list(BRAIN_TIES), np.uint32).view(np.float32))
    assert brain.tolist() == list(BRAIN_TIES.values())


def test_case_41_all_65536_halves():
    every = np.arange(65536, dtype=np.uint16)
    wide = casts.from_float16(every.view(np.float16))
    np.testing.assert_array_equal(bits(wide), bits(ggml.dequantize(every.view(np.uint8)[None], "F16")[0]))
    nan = np.isnan(wide)
    assert nan.sum() == 2 * 1023
    np.testing.assert_array_equal(casts.to_float16(wide).view(np.uint16)[~nan], every[~nan])
    brain = casts.from_bfloat16(every)
    np.testing.assert_array_equal(bits(brain), bits(ggml.dequantize(every.view(np.uint8)[None], "BF16")[0]))
    nan = np.isnan(brain)
    np.testing.assert_array_equal(casts.to_bfloat16(brain)[~nan], every[~nan])


def test_case_41_casts_equal_ggml_and_ml_dtypes(full):
    """Every float32 pattern in the full run; otherwise 200,000, most of them around the midpoints."""
    import ml_dtypes

    if full:
        chunks = (np.arange(i << 24, (i + 1) << 24, dtype=np.uint32) for i in range(256))
    else:
        rng = np.random.default_rng(41)
        near = (rng.integers(0, 1 << 19, 50_000) << 13) + (1 << 12) + rng.integers(-2, 3, 50_000)  # float16 midpoints
        brain = (rng.integers(0, 1 << 16, 50_000) << 16) + (1 << 15) + rng.integers(-2, 3, 50_000)
        chunks = [np.concatenate([near, brain, rng.integers(0, 1 << 32, 100_000)]).astype(np.uint32)]
    for chunk in chunks:
        x = chunk.view(np.float32)
        assert np.array_equal(casts.to_float16(x).view(np.uint16), ggml.to_float16(x))
        assert np.array_equal(casts.to_bfloat16(x), ggml.to_bfloat16(x))
        if not full:
            number = ~np.isnan(x)
            with np.errstate(all="ignore"):
                want = x.astype(ml_dtypes.bfloat16).view(np.uint16)
            assert np.array_equal(casts.to_bfloat16(x)[number], want[number])
