"""GPTQ against the code published with the paper, a torch loop of the same behaviour, and exact OBS in float64."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from refquant import ops
from refquant.errors import BackendUnavailable, BadInput, NotPositiveDefinite, UnknownName
from refquant.grids import IntGrid, as_grid
from refquant.methods import gptq, rtn

DATA = Path(__file__).parent / "data" / "gptq_published.npz"

# case: bits, sym, group size, block size, act_order, static_groups
PUBLISHED = {
    "asym-g32": (4, False, 32, 128, False, False),
    "sym-g32": (4, True, 32, 128, False, False),
    "act-order": (3, False, 32, 64, True, False),
    "static": (4, False, 32, 128, True, True),
    "row": (4, False, -1, 128, False, False),
}


def published_layer():
    """A layer w [48, 160] and its H, the same on every machine: integers until the last, exact step."""
    numbers = random.Random(1)
    z = np.array([[int(numbers.random() * 17) - 8 for _ in range(160)] for _ in range(256)])
    x = z + 2 * np.roll(z, 1, axis=1) + 3 * z[:, :1]
    x[:, 7] *= 9  # an outlier channel
    x[:, 50] = 0  # a dead one
    w = np.array([[sum(int(numbers.random() * 97) - 48 for _ in range(4)) for _ in range(160)] for _ in range(48)])
    w[:, 50] = 1  # not the extreme of its row: the published code fits a row before it drops dead columns
    return (w / 64).astype(np.float32), (2 * (x.T @ x) / len(x)).astype(np.float32)


def make_layer(n=24, k=96, tokens=400, seed=0, dtype=np.float32):
    """Weights, inputs whose channels are correlated and of different size, and H."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(k, k)) / np.sqrt(k) + np.eye(k)
    x = (rng.normal(size=(tokens, k)) @ mix * np.exp(rng.normal(size=k))).astype(dtype)
    w = (rng.normal(size=(n, k)) / 8).astype(np.float32)
    return w, x, gptq.hessian(x)


def codes(result):
    return ops.unpack(result.quantized)["codes"]


def output_error(quantized, w, x):
    """Squared output change per token, in float64."""
    change = (ops.dequantize(quantized).astype(np.float64) - w) @ np.asarray(x, np.float64).T
    return np.square(change).sum() / len(x)


# ---- the Hessian


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_hessian_is_two_over_n_times_the_sum_of_outer_products(dtype):
    x = np.random.default_rng(1).normal(size=(37, 11)).astype(dtype)
    exact = np.zeros((11, 11))
    for token in x.astype(np.float64):
        exact += 2 / len(x) * np.outer(token, token)
    H = gptq.hessian(x)
    assert H.dtype == (np.float64 if dtype == np.float64 else np.float32)
    np.testing.assert_allclose(H, exact, rtol=0, atol=1e-14 if dtype == np.float64 else 2e-6)


def test_hessian_of_batches_is_that_of_all_tokens():
    x = np.random.default_rng(2).normal(size=(4, 25, 8))
    mean = gptq.Hessian(8, np.float64)
    for batch in (x[:1], x[1:3], x[3, :5], x[3, 5:]):  # any batch shape, of uneven size
        mean.add(batch)
    assert mean.n == 100
    np.testing.assert_allclose(mean.H, gptq.hessian(x.reshape(-1, 8)), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "x",
    [
        np.empty((0, 4)),  # a calibration of zero tokens
        np.full((3, 4), np.nan),
        np.array([[0, 1, np.inf, 2.0]]),
        np.ones((3, 4), np.int64),
        np.ones(4),
        np.float64(1),
    ],
)
def test_hessian_refuses(x):
    with pytest.raises(BadInput, match="calibration"):
        gptq.hessian(x)


def test_hessian_refuses_another_width():
    with pytest.raises(BadInput, match=r"\[tokens, 4\]"):
        gptq.Hessian(4).add(np.ones((2, 5)))


# ---- against the published code


@pytest.mark.parametrize("case", PUBLISHED)
def test_reference_group_parameters_give_the_codes_of_the_published_code(case):
    bits, sym, group, block, act_order, static = PUBLISHED[case]
    w, H = published_layer()
    grid = IntGrid(bits, group, sym, scale_dtype="float32")
    r = gptq.quantize(w, H, grid, block, 0.01, act_order, static, group_params="reference")
    with np.load(DATA) as published:
        np.testing.assert_array_equal(codes(r), published[f"{case}/codes"])
        np.testing.assert_allclose(r.quantized.arrays["scales"], published[f"{case}/scales"], rtol=1e-5)


def test_the_published_fixture_tells_stale_from_fresh_group_parameters():
    w, H = published_layer()
    grid = IntGrid(4, 32, scale_dtype="float32")
    with np.load(DATA) as published:
        wrong = codes(gptq.quantize(w, H, grid)) != published["asym-g32/codes"]
    assert wrong[:, 32:].mean() > 0.1
    assert not wrong[:, :32].any()


def loop_in_torch(w, H, grid, block_size):
    """What the paper's Algorithm 1 and the published code do, one float32 operation after the other. Codes [n, k]."""
    W, H = torch.tensor(w), torch.tensor(H)
    k = W.shape[1]
    H += 0.01 * H.diagonal().mean() * torch.eye(k)
    U = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
    top, size = 2**grid.bits - 1, grid.group_size or k
    found = torch.zeros_like(W)
    for first in range(0, k, block_size):
        last = min(first + block_size, k)
        block, errors = W[:, first:last].clone(), torch.zeros(len(W), last - first)
        for j in range(first, last):
            if j % size == 0:
                group = W[:, j : j + size]  # without this block's updates
                low, high = group.amin(1).clamp(max=0), group.amax(1).clamp(min=0)
                if grid.sym:
                    high = torch.maximum(-low, high)
                    low = -high
                scale = (high - low) / top
                zero = torch.full_like(scale, (top + 1) / 2) if grid.sym else torch.round(-low / scale)
            column = block[:, j - first]
            found[:, j] = torch.clamp(torch.round(column / scale) + zero, 0, top)
            errors[:, j - first] = (column - (found[:, j] - zero) * scale) / U[j, j]
            block[:, j - first :] -= errors[:, j - first, None] * U[j, j:last]
        W[:, last:] -= errors @ U[first:last, last:]
    return found.numpy().astype(np.uint8)


@pytest.mark.parametrize(
    ("bits", "group", "sym", "block", "k"),
    [
        (4, 32, False, 128, 160),
        (3, 64, True, 48, 100),
        (4, 48, False, 32, 128),
        (2, -1, False, 7, 64),
        (8, 16, True, 64, 64),
    ],
)
def test_reference_group_parameters_give_the_codes_of_a_torch_loop(bits, group, sym, block, k):
    w, _, H = make_layer(n=16, k=k, seed=bits)
    grid = IntGrid(bits, group, sym, scale_dtype="float32")
    r = gptq.quantize(w, H, grid, block, group_params="reference")
    np.testing.assert_array_equal(codes(r), loop_in_torch(w, H, grid, block))


# ---- against exact arithmetic


def exact_obs(w, H, grid, order, distance=None):
    """Optimal Brain Surgeon in float64: fix one column, move the rest, invert the rest of H anew. Codes [n, k].

    Groups are fitted to the weights as they stand when `order` reaches the group's first column. The least distance of
    any weight from the middle between two codes, in steps, is appended to `distance`: codes may differ only below it.
    """
    W = w.astype(np.float64)[:, order]
    H = H.astype(np.float64)
    H = (H + 0.01 * np.diag(H).mean() * np.eye(len(H)))[np.ix_(order, order)]
    n, k = W.shape
    found = np.empty((n, k), np.uint8)
    size = grid.group_size or k
    for j in range(k):
        if j % size == 0:
            scale, zero = grid.fit(W[:, j : j + size])
        found[:, j] = grid.encode(W[:, j], scale, zero)
        if distance is not None:
            position = W[:, j] / scale + zero
            distance.append(np.abs(np.abs(position - np.floor(position)) - 0.5).min())
        error = W[:, j] - (found[:, j] - zero.astype(np.float64)) * scale
        Hinv = np.linalg.inv(H[j:, j:])
        W[:, j:] -= np.outer(error / Hinv[0, 0], Hinv[0])
    return found[:, np.argsort(order)]


@pytest.mark.parametrize("k", [16, 40, 64])
@pytest.mark.parametrize("name", ["int4-g16", "int3-g32-sym", "int2-row", "int4-g24"])
@pytest.mark.parametrize("act_order", [False, True])
def test_case_15_gptq_is_exact_obs(k, name, act_order):
    w, _, H = make_layer(n=12, k=k, seed=k)
    order = np.argsort(-np.diag(H), kind="stable") if act_order else np.arange(k)
    distance = []
    exact = exact_obs(w, H, as_grid(name), order, distance)
    assert min(distance) > 1e-5, "a near-tie: float32 may fall either way; take another seed"
    np.testing.assert_array_equal(codes(gptq.quantize(w, H, name, block_size=13, act_order=act_order)), exact)


@pytest.mark.parametrize("name", ["int4-g32", "int3-g48-sym", "int4-row", "int4-g64"])
def test_case_14_every_block_size_gives_the_same_codes(name):
    w, _, H = make_layer(n=16, k=160, seed=3)
    one = gptq.quantize(w, H, name, block_size=1)
    for block_size in (32, 48, 128, 160, 1000):
        r = gptq.quantize(w, H, name, block_size=block_size)
        np.testing.assert_array_equal(codes(r), codes(one))
        np.testing.assert_allclose(r.losses, one.losses, rtol=1e-3)


def test_case_14_reference_group_parameters_are_fresh_unless_a_group_starts_inside_a_block():
    w, _, H = make_layer(n=16, k=128, seed=3)
    fresh = codes(gptq.quantize(w, H, "int4-g32"))
    for block_size in (1, 16, 32):
        np.testing.assert_array_equal(
            codes(gptq.quantize(w, H, "int4-g32", block_size, group_params="reference")), fresh
        )
    assert (codes(gptq.quantize(w, H, "int4-g32", 128, group_params="reference")) != fresh).any()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["int4-g32", "int3-g32", "int2-row", "int4-g32-sym"])
@pytest.mark.parametrize("options", [{}, {"act_order": True}, {"group_params": "reference"}, {"static_groups": True}])
def test_case_16_never_worse_than_rtn_on_correlated_inputs(seed, name, options):
    w, x, H = make_layer(n=16, k=96, seed=seed)
    ours = output_error(gptq.quantize(w, H, name, **options).quantized, w, x)
    assert ours < 0.9 * output_error(rtn.quantize(w, name), w, x)


def test_case_17_row_i_of_the_factor_is_row_i_of_the_step_i_inverse():
    _, _, H = make_layer(k=24, seed=5, dtype=np.float64)
    U, damp = gptq.inverse_factor(H, 0.01)
    H = H + damp * np.diag(H).mean() * np.eye(24)
    assert np.array_equal(U, np.triu(U))
    for i in range(24):
        step = np.linalg.inv(H[i:, i:])
        np.testing.assert_allclose(U[i, i:], step[0] / np.sqrt(step[0, 0]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"act_order": True}, {"static_groups": True}, {"block_size": 20}])
def test_losses_are_the_output_error_of_the_damped_hessian(options):
    w, _, H = make_layer(n=9, k=64, seed=6)
    r = gptq.quantize(w, H, "int3-g32", **options)
    change = ops.dequantize(r.quantized).astype(np.float64) - w
    damped = H + 0.01 * np.diag(H).mean() * np.eye(64)
    assert r.losses.shape == (64,)
    np.testing.assert_allclose(r.losses.sum(), 0.5 * np.trace(change @ damped @ change.T), rtol=1e-4)


def test_losses_stay_with_their_columns():
    w, _, H = make_layer(n=9, k=40, seed=6)
    order = np.argsort(-np.diag(H), kind="stable")
    sorted_before = gptq.quantize(w[:, order], H[np.ix_(order, order)], "int3-row")
    np.testing.assert_array_equal(gptq.quantize(w, H, "int3-row", act_order=True).losses[order], sorted_before.losses)


# ---- Hessians that are hard to factor


def hard_inputs(kind, rng, k=64):
    x = rng.normal(size=(400, k)).astype(np.float32)
    if kind == "fewer tokens than inputs":
        return x[:20]
    if kind == "duplicated features":
        x[:, 1::2] = x[:, ::2]
    if kind == "zero features":
        x[:, ::3] = 0
    if kind == "one token":
        return x[:1]
    if kind == "one huge feature":
        x[:, 5] *= 1e4
    if kind == "tiny":
        x *= 1e-15
    return x


@pytest.mark.parametrize("damp", [0.01, 0])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(
    "kind",
    ["fewer tokens than inputs", "duplicated features", "zero features", "one token", "one huge feature", "tiny"],
)
def test_case_18_hard_hessians_succeed_with_the_damping_reported(kind, act_order, damp):
    rng = np.random.default_rng(7)
    x, w = hard_inputs(kind, rng), rng.normal(size=(8, 64)).astype(np.float32)
    r = gptq.quantize(w, gptq.hessian(x), "int4-g32", damp=damp, act_order=act_order)
    assert np.isfinite(ops.dequantize(r.quantized)).all()
    assert np.isfinite(r.losses).all()
    assert r.damp in (0, 1e-4, 1e-3, 0.01, 0.1, 1.0)
    if damp:
        assert r.damp == damp
    if kind in ("fewer tokens than inputs", "duplicated features", "one token"):  # where something can compensate
        assert output_error(r.quantized, w, x) < 1.001 * output_error(rtn.quantize(w, "int4-g32"), w, x)


def test_case_18_damping_rises_tenfold_until_the_factor_exists():
    w, _, H = make_layer(k=32, seed=8, dtype=np.float64)
    H += (0.05 * np.diag(H).mean() - np.linalg.eigvalsh(H).min()) * np.eye(32)
    H -= 0.1 * np.diag(H).mean() * np.eye(32)  # the least eigenvalue is now about -0.05 of the mean diagonal
    assert gptq.quantize(w, H, "int4-g32", damp=0.01).damp == 0.1
    assert gptq.quantize(w, H, "int4-g32", damp=0).damp == 0.1
    assert gptq.quantize(w, H, "int4-g32", damp=0.5).damp == 0.5


@pytest.mark.parametrize("k", range(8, 17))
def test_case_18_a_hilbert_matrix_is_factored_or_damped(k):
    """Condition 1e10 to beyond float64: either Cholesky, of H or of its inverse, may be the one that fails."""
    j = np.arange(k)
    U, damp = gptq.inverse_factor(1 / (j[:, None] + j + 1), 0)
    assert np.isfinite(U).all()
    assert damp in ([0] if k < 10 else [0, 1e-4])


def test_case_18_what_no_damping_repairs_is_a_named_error():
    w, _, H = make_layer(k=32, seed=8)
    H[0, 1] = H[1, 0] = 100 * np.trace(H)
    with pytest.raises(NotPositiveDefinite, match="even with damping 1"):
        gptq.quantize(w, H, "int4-g32")


def test_case_19_a_dead_column_becomes_zero_and_leaves_the_others_alone():
    w, x, _ = make_layer(n=8, k=40, seed=9)
    w[:, 11] = 1.0  # would be the largest weight of its row
    x[:, 11] = 0
    alive = np.delete(np.arange(40), 11)
    r = gptq.quantize(w, gptq.hessian(x), "int4-row", damp=0)
    without = gptq.quantize(w[:, alive], gptq.hessian(x[:, alive]), "int4-row", damp=0)
    assert r.dead.tolist() == [11]
    assert not ops.dequantize(r.quantized)[:, 11].any()
    np.testing.assert_array_equal(codes(r)[:, alive], codes(without))
    assert w[0, 11] == 1.0, "the caller's weights were changed"


def test_case_19_all_columns_dead():
    r = gptq.quantize(np.ones((3, 8), np.float32), np.zeros((8, 8), np.float32), "int4-row")
    assert not ops.dequantize(r.quantized).any()
    assert len(r.dead) == 8


@pytest.mark.parametrize("name", ["int4-g32", "int3-g32-sym"])
@pytest.mark.parametrize("value", [0.0, 0.25, -0.25, 1e-30])
def test_case_20_zero_and_constant_groups_are_finite(name, value):
    w, _, H = make_layer(n=8, k=64, seed=10)
    w[:, 32:] = value
    w[3] = value
    r = gptq.quantize(w, H, name)
    assert np.isfinite(ops.dequantize(r.quantized)).all()
    assert np.isfinite(r.losses).all()
    if not value:
        assert not ops.dequantize(r.quantized)[3].any()


# ---- groups


@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("options", [{}, {"act_order": True}, {"group_params": "reference"}, {"static_groups": True}])
def test_case_10_group_size_minus_one_is_the_whole_row(sym, options):
    w, _, H = make_layer(k=72, seed=11)
    whole, k = (gptq.quantize(w, H, IntGrid(4, size, sym), **options).quantized for size in (-1, 72))
    assert whole.arrays.keys() == k.arrays.keys()
    for name in k.arrays:
        np.testing.assert_array_equal(whole.arrays[name], k.arrays[name])


@pytest.mark.parametrize("options", [{}, {"act_order": True}, {"act_order": True, "static_groups": True}])
def test_case_11_the_last_group_may_be_short(options):
    w, x, H = make_layer(n=8, k=192, seed=12)
    r = gptq.quantize(w, H, "int4-g128", **options)
    assert r.quantized.arrays["scales"].shape == (8, 2)
    assert output_error(r.quantized, w, x) < output_error(rtn.quantize(w, "int4-g128"), w, x)


def test_case_12_g_idx_is_there_exactly_when_needed_and_counts_each_group():
    w, _, H = make_layer(n=8, k=80, seed=13)
    r = gptq.quantize(w, H, "int4-g32", act_order=True)
    g_idx = r.quantized.arrays["g_idx"]
    assert g_idx.dtype == np.int32
    assert np.bincount(g_idx).tolist() == [32, 32, 16]
    order = np.argsort(-np.diag(H), kind="stable")
    np.testing.assert_array_equal(g_idx[order], np.arange(80) // 32)
    for name, options in [
        ("int4-g32", {}),
        ("int4-g32", {"act_order": True, "static_groups": True}),
        ("int4-row", {"act_order": True}),
    ]:
        assert "g_idx" not in gptq.quantize(w, H, name, **options).quantized.arrays


def test_static_groups_have_the_parameters_of_rtn():
    w, _, H = make_layer(n=8, k=80, seed=14)
    for act_order in (False, True):
        r = gptq.quantize(w, H, "int4-g32", act_order=act_order, static_groups=True)
        for name in ("scales", "zeros"):
            np.testing.assert_array_equal(r.quantized.arrays[name], rtn.quantize(w, "int4-g32").arrays[name])


# ---- arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"H": np.eye(7, dtype=np.float32)}, r"\[16, 16\]"),
        ({"H": np.full((16, 16), np.nan)}, "finite"),
        ({"H": np.eye(16, dtype=np.int64)}, "int64"),
        ({"w": np.full((2, 16), np.nan, np.float32)}, "NaN"),
        ({"w": np.ones((2, 16), np.int32)}, "int32"),
        ({"w": np.ones((0, 16), np.float32)}, "empty"),
        ({"block_size": 0}, "block_size"),
        ({"block_size": 2.5}, "block_size"),
        ({"damp": -0.1}, "damp"),
        ({"damp": float("nan")}, "damp"),
        ({"group_params": "stale"}, "'fresh' or 'reference'"),
    ],
)
def test_bad_arguments_are_named(options, message):
    good = {"w": np.ones((2, 16), np.float32), "H": np.eye(16, dtype=np.float32), "grid": "int4-g8"}
    with pytest.raises(BadInput, match=message):
        gptq.quantize(**good | options)


def test_unknown_grid_and_backend():
    w, H = np.ones((2, 16), np.float32), np.eye(16, dtype=np.float32)
    with pytest.raises(UnknownName, match="int4-g128"):
        gptq.quantize(w, H, "int9-g8")
    with pytest.raises(BackendUnavailable, match="numpy, numba, cuda"):
        gptq.quantize(w, H, "int4-g8", backend="abacus")


def test_a_fast_path_takes_the_arguments_of_the_reference(monkeypatch):
    w, _, H = make_layer(k=32)
    monkeypatch.setitem(ops.BACKENDS, "test", None)
    monkeypatch.setitem(ops.find_op("gptq", "int").fast, "test", ops.find_op("gptq", "int").reference)
    slow, fast = (gptq.quantize(w, H, "int4-g16", act_order=True, backend=backend) for backend in ("numpy", "test"))
    np.testing.assert_array_equal(codes(fast), codes(slow))
    assert ops.traffic("gptq", (128, 256), "int4-g128").read == 4 * 128 * 256 + 4 * 256 * 256
