"""The searches of the block formats: identical bytes to ggml's compiled quantizer.

The long run, a million weights of each kind for each format and each importance, with the rows of real models as well:

    pytest tests/test_kquants.py tests/test_gguf_blocks.py --full --weights model.safetensors --weights model.gguf
"""

import ggml
import gguf
import numpy as np
import pytest
import rows

import refquant as rq
from refquant import ops
from refquant.errors import BadInput
from refquant.methods.kquants import arithmetic, blocks

NAMES = [
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4",
]  # fmt: skip
K_QUANTS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
IGNORE_IMPORTANCE = ["F32", "F16", "BF16", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"]
BLOCK = [name for name in NAMES if ggml.sizes(name)[0] > 1]


def encode(w, name, importance=None):
    return rq.quantize(w, name, importance=importance).arrays["blocks"]


def assert_same_bytes(w, name, importance=None):
    got, want = encode(w, name, importance), ggml.quantize(w, name, importance)
    if not np.array_equal(got, want):
        weights, size = ggml.sizes(name)
        different = (got != want).reshape(-1, size).any(axis=1)
        first = int(different.argmax())
        raise AssertionError(
            f"{name}: {different.sum()} of {different.size} blocks differ, first {w.reshape(-1, weights)[first]}: "
            f"got {got.reshape(-1, size)[first]}, ggml has {want.reshape(-1, size)[first]}"
        )


@pytest.fixture(scope="session")
def sources(request, full):
    """Matrices by kind: a million weights each in the full run, and the rows of real models that --weights names."""
    rng, n, k = np.random.default_rng(20), *((1024, 1024) if full else (12, 512))
    kinds = {"gaussian": rows.gaussian(rng, n, k), "heavy-tailed": rows.heavy_tailed(rng, n, k)}
    kinds["crafted"] = rows.crafted(rng, n if full else 4 * n, k)
    for path in request.config.getoption("--weights"):
        kinds[path.stem] = rows.from_file(path, n, k)
    return kinds if full else {"all": np.concatenate(list(kinds.values()))}


@pytest.mark.parametrize("kind", rows.IMPORTANCE)
@pytest.mark.parametrize("name", NAMES)
def test_encode_equals_ggml(name, kind, sources):
    for w in sources.values():
        assert_same_bytes(w, name, rows.importance(kind, np.random.default_rng(21), w.shape[1]))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("Q2_K", "one column in 16"), ("Q2_K", "one column in 64"), ("Q3_K", "none"), ("Q4_K", "one column in 64")],
)
def test_rare_branches(name, kind):
    """Negative scales that run over into their neighbours, and the fifth round of the descent: 1 block in thousands."""
    rng = np.random.default_rng(32)
    for _ in range(3):
        assert_same_bytes(rows.crafted(rng, 1000, 256), name, rows.importance(kind, rng, 256))


@pytest.mark.parametrize("name", BLOCK)
def test_huge_weights_that_do_not_matter(name, full):
    """An outlier of zero importance is the one way to leave the range in which rounding is simple."""
    rng, n = np.random.default_rng(22), 512 if full else 8
    w = rng.standard_normal((n, 1024))
    w[rng.random(w.shape) < 0.02] *= 10.0 ** rng.uniform(0, 18)
    importance = np.where((np.abs(w) > 8).any(axis=0), 0, rng.chisquare(1, 1024)).astype(np.float32)
    assert_same_bytes(w.astype(np.float32), name, importance)


@pytest.mark.parametrize("name", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"])
def test_encode_equals_gguf_py(name):
    """A second encoder, for the formats that it has."""
    w = rows.heavy_tailed(np.random.default_rng(23), 32, 512)
    np.testing.assert_array_equal(encode(w, name), gguf.quantize(w, ggml.TYPES[name]).view(np.uint8))


@pytest.mark.parametrize("name", ["Q4_0", "Q5_1", "Q4_K", "IQ4_XS"])
def test_slabs_join(name, monkeypatch):
    """Work is cut into slabs of rows; the cut must not show, and a row wider than a slab is whole."""
    w = rows.gaussian(np.random.default_rng(24), 5, 768)
    importance = rows.importance("ordinary", np.random.default_rng(25), 768)
    whole = encode(w, name, importance)
    for size in (1, 768, 1600):
        monkeypatch.setattr(blocks, "SLAB", size)
        np.testing.assert_array_equal(encode(w, name, importance), whole)


@pytest.mark.parametrize("name", NAMES)
def test_views_and_other_floats_are_accepted(name):
    """The transpose of a matrix, every second row, float64 and float16 give what a plain float32 copy gives."""
    w = rows.gaussian(np.random.default_rng(26), 256, 512)
    for view in (w.T, w[::2], w.astype(np.float64)[:3], w.astype(np.float16)[:3]):
        np.testing.assert_array_equal(encode(view, name), encode(np.array(view, np.float32, order="C"), name))


# relative to weights of standard deviation 1; ggml's own figures on 64 x 1024 such weights, see CASES.md
RMSE = {"Q2_K": 0.2959, "Q3_K": 0.1514, "Q4_0": 0.0862, "Q4_K": 0.0714, "Q5_K": 0.0363, "Q6_K": 0.0178, "Q8_0": 0.0054}


@pytest.mark.parametrize("name", RMSE)
def test_error_on_gaussian_weights(name):
    w = np.random.default_rng(27).standard_normal((64, 1024)).astype(np.float32)
    error = np.sqrt(np.mean((rq.dequantize(rq.quantize(w, name)) - w) ** 2))
    assert error == pytest.approx(RMSE[name], rel=0.03)


@pytest.mark.parametrize("name", [name for name in BLOCK if name not in IGNORE_IMPORTANCE])
def test_importance_lowers_the_error_that_it_weighs(name):
    rng = np.random.default_rng(28)
    w, importance = rng.standard_normal((64, 512)).astype(np.float32), (rng.chisquare(1, 512) ** 2).astype(np.float32)

    def weighted_error(q):
        return np.sum(importance * (rq.dequantize(q) - w) ** 2)

    assert weighted_error(rq.quantize(w, name, importance=importance)) < 0.97 * weighted_error(rq.quantize(w, name))


# ---- arithmetic: worked by hand


def test_rounding_rules_at_ties():
    v = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49999997, 8388607.0], np.float32)
    assert arithmetic.nearest(v[:7]).tolist() == [0, 2, 2, 0, -2, -2, 0]
    assert arithmetic.round_half_away(v).tolist() == [1, 2, 3, -1, -2, -3, 0, 8388607]
    assert arithmetic.truncated(v[:6]).tolist() == [0, 1, 2, 0, -1, -2]
    odd = np.array([np.inf, -np.inf, np.nan, 128.0, 255.0, 256.0, -129.0, 3e9], np.float32)
    assert arithmetic.truncated(odd).tolist() == [0, 0, 0, -128, -1, 0, 127, 0]
    # infinity and NaN have their low 23 bits read like any other: 0 - 2^22, and 2^22 - 2^22
    assert arithmetic.nearest(odd[:3]).tolist() == [-4194304, -4194304, 0]


def test_sums_go_from_left_to_right():
    terms = np.array([1e8, 1, 1, 1, 1, -1e8], np.float32)
    assert arithmetic.ordered_sum(terms) == 0  # 1e8 + 1 is 1e8 in float32, four times
    assert terms.astype(np.float64).sum() == 4


# ---- the mistakes of CASES.md


@pytest.mark.parametrize("name", BLOCK)
def test_case_37_groups_near_zero_get_finite_scales(name):
    rng = np.random.default_rng(37)
    for scale in (1e-20, 1e-38, 1e-40, 1e-45, 6e-8, 1e-15):
        w = (rng.standard_normal((4, 512)) * scale).astype(np.float32)
        w[1, :256] = 0
        w[2, 64:96] = scale
        w[3] = 0
        for importance in (None, np.ones(512, np.float32)):
            assert_same_bytes(w, name, importance)
            q = rq.quantize(w, name, importance=importance)
            fields = ops.unpack(q)
            assert all(np.isfinite(fields[field]).all() for field in ("d", "dmin", "m") if field in fields)
            assert np.isfinite(rq.dequantize(q)).all()


def test_case_38_products_and_sums_round_apart():
    """Fused multiply-add would change bytes, at ties only. ggml's released builds do not fuse, and neither do we.

    Q4_1 rounds (x - m) * (1 / d) + 0.5. The weights are put within two steps of a tie; the product of two float32 is
    exact in float64, so rounding it once after the addition is what a fused operation gives.
    """
    rng = np.random.default_rng(38)
    low, high = rng.uniform(-2, -1, (500, 1)).astype(np.float32), rng.uniform(1, 2, (500, 1)).astype(np.float32)
    inverse = np.float32(1) / ((high - low) / np.float32(15))
    w = (low + (rng.integers(0, 15, (500, 32)) + np.float32(0.5)) / inverse).astype(np.float32)
    for _ in range(2):
        w = np.nextafter(w, np.float32(rng.choice([-3, 3])), where=rng.random(w.shape) < 0.5, out=w.copy())
    w[:, :1], w[:, 1:2] = low, high
    exact = (w - low).astype(np.float64) * inverse
    apart = np.floor(exact.astype(np.float32) + np.float32(0.5))
    fused = np.floor((exact + 0.5).astype(np.float32))
    different = apart != fused
    assert different.any()
    last_place = np.spacing((exact + 0.5).astype(np.float32))
    assert (np.abs(exact - np.floor(exact) - 0.5)[different] <= last_place[different]).all()
    q = rq.quantize(w, "Q4_1")
    np.testing.assert_array_equal(ops.unpack(q)["codes"], np.minimum(apart, 15))
    np.testing.assert_array_equal(q.arrays["blocks"], ggml.quantize(w, "Q4_1"))


@pytest.mark.parametrize("name", NAMES)
def test_case_39_importance_of_zero_is_defined_and_nan_is_refused(name):
    w = rows.gaussian(np.random.default_rng(39), 4, 512)
    none_matter = np.zeros(512, np.float32)
    assert_same_bytes(w, name, none_matter)
    assert np.isfinite(rq.dequantize(rq.quantize(w, name, importance=none_matter))).all()
    for bad in (np.nan, np.inf, -np.inf, -1e-30):
        importance = np.ones(512, np.float32)
        importance[[7, 300]] = bad
        with pytest.raises(BadInput, match=r"importance: 2 of 512 values are NaN, infinite or negative.* column 7"):
            rq.quantize(w, name, importance=importance)
    with pytest.raises(BadInput, match="one value per column"):
        rq.quantize(w, name, importance=np.ones(511, np.float32))


@pytest.mark.parametrize("name", IGNORE_IMPORTANCE)
def test_formats_without_a_search_ignore_the_importance(name):
    w = rows.heavy_tailed(np.random.default_rng(29), 4, 512)
    importance = rows.importance("ordinary", np.random.default_rng(30), 512)
    np.testing.assert_array_equal(encode(w, name, importance), encode(w, name))
    assert_same_bytes(w, name, importance)


@pytest.mark.parametrize("name", K_QUANTS)
@pytest.mark.parametrize("kind", ["none", "ordinary"])
def test_case_40_codes_are_chosen_for_the_scale_that_is_stored(name, kind):
    """Each weight has the nearest level of the grid that the file describes, so choosing again changes nothing."""
    w = rows.heavy_tailed(np.random.default_rng(40), 16, 512)
    q = rq.quantize(w, name, importance=rows.importance(kind, np.random.default_rng(41), 512))
    fields = ops.unpack(q)
    top = {"Q2_K": 3, "Q3_K": 7, "Q4_K": 15, "Q5_K": 31, "Q6_K": 63}[name]

    def level(code):
        packed = ops.pack(fields | {"codes": np.full(w.shape, code, np.uint8)}, name, w.shape)
        return ggml.dequantize(packed.arrays["blocks"], name).astype(np.float64)

    levels = np.stack([level(code) for code in range(top + 1)])
    error = np.abs(ggml.dequantize(q.arrays["blocks"], name) - w.astype(np.float64))
    least = np.abs(levels - w).min(axis=0)
    assert (error <= least + 4 * np.spacing(np.abs(w).max())).all()  # ties may go either way


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"])
@pytest.mark.parametrize("k", [32, 96, 288, 576])
def test_case_48_rows_that_are_no_multiple_of_256(name, k):
    """The bytes that are expected come from ggml, never from here, for every row and with its own importance."""
    w = rows.gaussian(np.random.default_rng(48), 7, k)
    for kind in ("none", "ordinary"):
        importance = rows.importance(kind, np.random.default_rng(49), k)
        assert_same_bytes(w, name, importance)
        q = rq.quantize(w, name, importance=importance)
        np.testing.assert_array_equal(rq.dequantize(q), ggml.dequantize(ggml.quantize(w, name, importance), name))


# ---- NaN and infinity


@pytest.mark.parametrize("name", NAMES)
def test_nan_and_infinity_are_refused(name):
    for bad in (np.nan, np.inf, -np.inf):
        w = np.ones((2, 256), np.float32)
        w[1, 3] = bad
        with pytest.raises(BadInput, match=r"\[1, 3\]"):
            rq.quantize(w, name)


# What ggml makes of one bad weight, at [0, 5] of Gaussian rows of 512: how many weights of that row decode to NaN or
# infinity; and, of those that do not, how many became 0. Documented in methods.kquants.
OBSERVED_NAN = {
    ("Q4_0", False): 0, ("Q4_0", True): 512, ("Q5_0", True): 512, ("Q4_1", True): 0, ("Q8_0", False): 0,
    ("Q4_K", False): 0, ("Q4_K", True): 0, ("Q6_K", False): 0, ("MXFP4", False): 0,
}  # fmt: skip
OBSERVED_INFINITY = {
    ("Q4_0", False): 32, ("Q4_0", True): 512, ("Q8_0", False): 32, ("Q4_K", False): 256, ("Q6_K", False): 0,
    ("IQ4_XS", False): 0, ("TQ2_0", False): 256, ("MXFP4", False): 0,
}  # fmt: skip


@pytest.mark.parametrize(("bad", "observed"), [(np.nan, OBSERVED_NAN), (np.inf, OBSERVED_INFINITY)])
def test_what_ggml_does_with_nan_and_infinity_is_as_documented(bad, observed):
    w = np.random.default_rng(31).standard_normal((2, 512)).astype(np.float32)
    w[0, 5] = bad
    for (name, weighted), count in observed.items():
        out = ggml.dequantize(ggml.quantize(w, name, np.ones(512, np.float32) if weighted else None), name)
        assert (~np.isfinite(out[0])).sum() == count, (name, weighted)
        assert np.isfinite(out[1]).all(), (name, weighted)
