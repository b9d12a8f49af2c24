"""Codebooks and the grids on them, against ml_dtypes, torch and tables that other programs publish."""

from itertools import product
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import refquant as rq
from refquant import codebooks
from refquant.codebooks import E2M1, E4M3, E4M3_FNUZ, E5M2, E5M2_FNUZ, NF4
from refquant.errors import BadInput, UnknownName
from refquant.formats.bits import pack_bits, unpack_bits
from refquant.methods import gptq, rtn

DATA = Path(__file__).parent / "data"
PEERS = {  # the small floats and their names in ml_dtypes and torch
    "float8_e4m3fn": E4M3,
    "float8_e5m2": E5M2,
    "float8_e4m3fnuz": E4M3_FNUZ,
    "float8_e5m2fnuz": E5M2_FNUZ,
}
GRIDS = ["nf4", "nf4-b128", "fp8-e4m3", "fp8-e4m3-tensor", "fp8-e4m3-block", "fp8-e5m2", "mxfp4", "nvfp4", "llm-int8"]
GRIDS += ["fp8-e4m3fnuz", "fp8-e5m2fnuz-block"]


def arrays(name):
    with np.load(DATA / f"{name}.npz") as file:
        return dict(file)


def ml(name, codes):
    """The float32 values of uint8 codes, as ml_dtypes has them."""
    return codes.view(getattr(ml_dtypes, name)).astype(np.float32)


def hard_numbers(book):
    """All values, everything halfway between two, the overflow bound; one float32 to either side; zeros, infinities."""
    sizes = book.magnitudes.astype(np.float64)
    step = sizes[-1] - sizes[-2]
    at = np.concatenate([sizes, (sizes[:-1] + sizes[1:]) / 2, [sizes[-1] + step / 2, sizes[-1] + step, 1e30]])
    at = at.astype(np.float32)
    near = [np.nextafter(at, np.float32(end), dtype=np.float32) for end in (-np.inf, np.inf)]
    x = np.concatenate([at, *near, [np.inf, 1e-45, 1e-38]]).astype(np.float32)
    return np.concatenate([x, -x])


@pytest.mark.parametrize("name", PEERS)
def test_every_code_has_the_value_that_ml_dtypes_gives_it(name):
    codes = np.arange(256, dtype=np.uint8)
    got, want = PEERS[name].decode(codes), ml(name, codes)
    assert np.array_equal(np.isnan(got), np.isnan(want))
    assert np.array_equal(got[~np.isnan(got)].view(np.uint32), want[~np.isnan(want)].view(np.uint32))  # -0 is not 0


def test_every_e2m1_code_has_the_value_that_ml_dtypes_gives_it():
    codes = np.arange(16, dtype=np.uint8)
    assert np.array_equal(E2M1.decode(codes).view(np.uint32), ml("float4_e2m1fn", codes).view(np.uint32))
    assert np.array_equal(codebooks.E2M1_DOUBLED, [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12])


def test_every_e8m0_code_has_the_value_that_ml_dtypes_gives_it():
    codes = np.arange(256, dtype=np.uint8)
    got, want = codebooks.e8m0(codes), ml("float8_e8m0fnu", codes)
    assert np.array_equal(got.view(np.uint32)[:255], want.view(np.uint32)[:255])
    assert np.isnan(got[255])
    assert np.isnan(want[255])
    assert np.array_equal(codebooks.e8m0_code(got[:255]), codes[:255])


@pytest.mark.parametrize("scale", [3.0, 0.0, -2.0, 2.0**-128, np.inf, np.nan])
def test_what_e8m0_cannot_hold_is_refused(scale):
    with pytest.raises(BadInput, match="powers of two"):
        codebooks.e8m0_code(np.array([1, scale], np.float32))


@pytest.mark.parametrize("name", PEERS)
def test_hard_numbers_are_cast_as_ml_dtypes_and_torch_cast_them(name):
    book, x = PEERS[name], hard_numbers(PEERS[name])
    got = book.encode(x, "nan")
    with np.errstate(over="ignore"):
        assert np.array_equal(got, x.astype(getattr(ml_dtypes, name)).view(np.uint8))
    theirs = torch.from_numpy(x).to(getattr(torch, name)).view(torch.uint8).numpy()
    saturates = name == "float8_e4m3fn" and theirs[x == np.inf][0] == 0x7E  # as torch 2.13; older ones give NaN
    assert np.array_equal(book.encode(x, "saturate") if saturates else got, theirs)


@pytest.mark.parametrize("name", PEERS)
def test_saturation_differs_from_nan_only_where_a_number_overflows(name):
    book, x = PEERS[name], hard_numbers(PEERS[name])
    nan, saturated = book.encode(x, "nan"), book.encode(x)
    overflowed = ~np.isfinite(book.decode(nan))
    assert overflowed.sum() >= 6
    assert np.array_equal(nan[~overflowed], saturated[~overflowed])
    assert np.array_equal(book.decode(saturated[overflowed]), np.copysign(np.float32(book.max), x[overflowed]))


@pytest.mark.parametrize("name", PEERS)
def test_nan_stays_nan(name):
    x = np.array([np.nan, -np.nan], np.float32)
    for overflow in ("nan", "saturate"):
        assert np.isnan(PEERS[name].decode(PEERS[name].encode(x, overflow))).all()


@pytest.mark.parametrize("name", PEERS)
def test_random_floats_are_cast_as_ml_dtypes_casts_them(name):
    bits = np.random.default_rng(1).integers(0, 2**32, 1 << 16, np.uint32)
    x = bits.view(np.float32)
    x = np.concatenate([x[~np.isnan(x)], np.random.default_rng(2).normal(0, 30, 1 << 14).astype(np.float32)])
    with np.errstate(over="ignore"):
        want = x.astype(getattr(ml_dtypes, name)).view(np.uint8)
    assert np.array_equal(PEERS[name].encode(x, "nan"), want)


def test_e2m1_rounds_as_ml_dtypes_and_saturates():
    x = hard_numbers(E2M1)
    with np.errstate(over="ignore"):
        assert np.array_equal(E2M1.encode(x), x.astype(ml_dtypes.float4_e2m1fn).view(np.uint8))


@pytest.mark.parametrize(("x", "overflow"), [(np.nan, "saturate"), (1.0, "nan")])
def test_e2m1_has_no_nan(x, overflow):
    with pytest.raises(BadInput, match="no NaN"):
        E2M1.encode(np.float32(x), overflow)


def test_an_unknown_overflow_is_refused():
    with pytest.raises(BadInput, match="saturate"):
        E4M3.encode(np.float32(1), "wrap")


def test_nf4_and_the_dynamic_map_are_the_tables_of_bitsandbytes():
    published = arrays("bitsandbytes")
    assert np.array_equal(NF4.values.view(np.uint32), published["nf4"].view(np.uint32))
    assert np.array_equal(codebooks.DYNAMIC8.values.view(np.uint32), published["dynamic"].view(np.uint32))


def test_nf4_takes_the_nearest_level_and_of_two_the_lower():
    x = np.random.default_rng(0).uniform(-1.2, 1.2, 4000).astype(np.float32)
    distance = np.abs(x[:, None].astype(np.float64) - NF4.values)
    assert np.array_equal(NF4.encode(x), distance.argmin(axis=1))
    middle = (NF4.values[:-1] + NF4.values[1:]) / np.float32(2)
    assert np.array_equal(NF4.encode(middle), np.arange(15))
    assert np.array_equal(NF4.encode(np.nextafter(middle, np.float32(2))), np.arange(1, 16))


# ---- grids


def weights(n=130, k=256, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, k)).astype(np.float32) * rng.lognormal(0, 1, (n, 1)).astype(np.float32)


@pytest.mark.parametrize("name", GRIDS)
def test_decoding_and_encoding_again_changes_no_code(name):
    w = weights()
    grid = rq.as_grid(name, w)
    assert grid.name == name
    scales, zeros = (each[:, grid.group_index(w.shape[1])] for each in grid.fit_groups(w))
    codes = grid.encode(w, scales, zeros)
    assert codes.dtype == np.uint8
    assert np.array_equal(grid.encode(grid.decode(codes, scales, zeros), scales, zeros), codes)


@pytest.mark.parametrize("name", GRIDS)
def test_fit_is_fit_groups_of_one_group(name):
    w = weights()
    grid = rq.as_grid(name, w)
    size = grid.group_size or w.shape[1]
    scales, zeros = grid.fit_groups(w)
    for g in range(scales.shape[1]):
        one = grid.fit(w[:, g * size : (g + 1) * size])
        assert np.array_equal(one[0], scales[:, g])
        assert not zeros.any()


@pytest.mark.parametrize("name", GRIDS)
def test_rtn_is_the_format_s_own_rule_and_rounded_what_it_decodes_to(name):
    w = weights()
    q, r = rq.quantize(w, name), rtn.quantize(w, name)
    assert all(np.array_equal(q.arrays[key], r.arrays[key]) for key in q.arrays | r.arrays)
    assert np.array_equal(rq.dequantize(q), rtn.rounded(w, name))


@pytest.mark.parametrize("name", [*GRIDS, "nf4-dq"])
def test_gptq_without_correlation_is_rtn_and_with_it_better(name):
    w, rng = weights(48, 256), np.random.default_rng(3)
    alone = gptq.quantize(w, 2 * np.eye(256, dtype=np.float32), name, damp=0).quantized
    assert all(np.array_equal(a, rtn.quantize(w, name).arrays[key]) for key, a in alone.arrays.items())
    x = rng.normal(size=(600, 40)) @ rng.normal(size=(40, 256)) + 0.1 * rng.normal(size=(600, 256))
    q = gptq.quantize(w, gptq.hessian(x), name).quantized
    error = [np.square((rq.dequantize(each) - w) @ x.T).sum() for each in (q, alone)]
    assert error[0] < 0.7 * error[1]


def test_act_order_needs_static_groups_where_a_file_has_no_g_idx():
    w, x = weights(8, 256), np.random.default_rng(0).normal(size=(300, 256)) * np.linspace(1, 3, 256)
    H = gptq.hessian(x)
    with pytest.raises(BadInput, match="static_groups"):
        gptq.quantize(w, H, "mxfp4", act_order=True)
    q = gptq.quantize(w, H, "mxfp4", act_order=True, static_groups=True).quantized
    assert np.array_equal(q.arrays["weight_scale"], rq.quantize(w, "mxfp4").arrays["weight_scale"])


@pytest.mark.parametrize("name", [*GRIDS, "nf4-dq"])
@pytest.mark.parametrize("value", [0, 1e-20, -1e-38, 1e-45])
def test_case_37_tiny_groups_are_finite(name, value):
    w = np.full((2, 128), value, np.float32)
    w[1] = 0
    decoded = rq.dequantize(rq.quantize(w, name))
    assert np.isfinite(decoded).all()
    assert (np.abs(decoded) <= 2 * abs(value)).all()


@pytest.mark.parametrize("name", ["nf4-b100", "nf4-dq-b64", "fp8", "fp8-e3m4", "fp8-e4m3-row", "MXFP4-", "nvfp4-g16"])
def test_an_unknown_name_lists_the_known_ones(name):
    for find in (rq.as_grid, lambda name: rq.quantize(weights(), name)):
        with pytest.raises(UnknownName) as error:
            find(name)
        assert all(f" {known}," in str(error.value) for known in ("nf4", "fp8-e4m3", "int4-g128"))


# ---- the bit stream, and products


@pytest.mark.parametrize("bits", [3, 5, 6])
def test_case_46_dense_codes_are_the_words_of_compressed_tensors(bits):
    golden = arrays("compressed_tensors")
    codes, words = golden[f"codes{bits}"], golden[f"words{bits}"]
    stream = pack_bits(codes, bits)
    want = words.view(np.uint8)[:, : stream.shape[1]]  # whole words there, whole bytes here
    assert np.array_equal(stream, want)
    assert not words.view(np.uint8)[:, stream.shape[1] :].any()
    assert np.array_equal(unpack_bits(want, bits, codes.shape[1]), codes)


@pytest.mark.parametrize(
    ("bits", "stream"),
    [
        # The sum of i * 2^(bits * i), little-endian. In binary, code 7 first:
        (3, "88c6fa"),  # 111 110 101 100 011 010 001 000 = 0xFAC688
        (5, "2088418a39"),  # 00111 00110 00101 00100 00011 00010 00001 00000 = 0x398A418820
        (6, "40200c44611c"),  # 000111 000110 000101 000100 000011 000010 000001 000000 = 0x1C61440C2040
    ],
)
def test_case_46_the_codes_0_to_7_worked_by_hand(bits, stream):
    assert pack_bits(np.arange(8, dtype=np.uint8), bits).tobytes().hex() == stream


FREE = ["nf4", "nf4-dq", "fp8-e4m3", "fp8-e4m3-block", "llm-int8", "int3-g32", "int5-g64", "int6-row"]  # any k


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize(("n", "k"), list(product([1, 2, 3, 7], [1, 33, 100, 127])))
def test_case_46_few_outputs_and_a_tail_of_inputs(name, n, k):
    w, x = weights(n, k), np.random.default_rng(4).normal(size=(2, k)).astype(np.float32)
    q = rq.quantize(w, name)
    got, want = rq.matmul(x, q), x.astype(np.float64) @ rq.dequantize(q).T
    assert got.shape == (2, n)
    near = 0.05 if name == "llm-int8" else 1e-5  # which rounds x as well
    assert np.abs(got - want).max() <= near * np.abs(x).max() * np.abs(w).max() * np.sqrt(k)
    dense = np.square(rq.dequantize(q) - w).sum() / np.square(w).sum()
    assert dense < 0.06


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(PEERS)), st.floats(width=32, allow_nan=False))
def test_the_cast_is_nearest_by_brute_force(name, x):
    book = PEERS[name]
    got = float(book.decode(book.encode(np.float32([x])))[0])
    finite = book.magnitudes.astype(np.float64)
    nearest = np.abs(abs(x) - finite).min() if abs(x) < finite[-1] else abs(abs(x) - finite[-1])
    assert abs(got - x) == nearest or np.isinf(x)


def test_the_committed_arrays_say_where_they_come_from():
    assert str(arrays("bitsandbytes")["version"]).startswith("bitsandbytes 0.50.2")
    assert str(arrays("compressed_tensors")["version"]).startswith("compressed-tensors 0.20.0")
