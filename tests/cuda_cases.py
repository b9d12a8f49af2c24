"""What every way of running the CUDA kernels is held to: on the host (`test_cuda_encoders`), on a GPU (`tests/gpu`)."""

import numpy as np
import rows
from gptq_cases import assert_same_but_for_near_ties, layer

import refquant as rq
from refquant.grids import IntGrid, as_grid
from refquant.methods import awq, gptq, llm_int8

ENCODED = [
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
    "TQ1_0", "TQ2_0", "MXFP4", "F16", "BF16",
]  # fmt: skip
SMALL = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4")  # blocks of 32
GRIDS = [
    "int4-g128", "int8-g32", "int2-g64-sym", "int4-row", "int3-g128", "int3-g100-sym", "int8-row-sym", "int5-g48",
    "int1-g16", "nf4", "nf4-dq", "nf4-b128", "nf4-b4096-dq", "fp8-e4m3", "fp8-e4m3-tensor", "fp8-e4m3-block",
    "fp8-e5m2", "fp8-e4m3fnuz", "fp8-e5m2fnuz-block", "llm-int8",
]  # fmt: skip


def blocks(seed, n, k=512):
    """Crafted rows and ordinary ones."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rows.crafted(rng, n, k), rows.gaussian(rng, 5, k), rows.heavy_tailed(rng, 5, k)])


def assert_same_bytes(got, want, size):
    different = (got != want).reshape(-1, size).any(axis=1)
    assert got.shape == want.shape
    assert not different.any(), f"{different.sum()} of {different.size} blocks, the first {different.argmax()}"


def ragged(name):
    """Matrices whose blocks do not fill a tile, and widths of one and more blocks."""
    k = {"F16": 1, "BF16": 1}.get(name, 32 if name in SMALL else 256)
    for n, blocks_of_row in ((1, 1), (3, 5), (17, 3)):
        yield rows.heavy_tailed(np.random.default_rng(n), n, k * blocks_of_row)


def matrices():
    """For the grids: widths that no group divides, groups of zeros, of one sign, of crafted weights."""
    rng = np.random.default_rng(40)
    for n, k in ((5, 256), (7, 131), (33, 384), (130, 257)):
        w = rows.heavy_tailed(rng, n, k)
        w[0, :9], w[1], w[2] = 0, 0, np.abs(w[2])
        if n == 33:
            w[3:] = rows.crafted(rng, 30, 768)[:, :k].clip(-1e4, 1e4)
        yield w


def ties(name):
    """Weights exactly halfway between two codes, each group with a scale of 1."""
    rng, grid, shape = np.random.default_rng(41), as_grid(name), (6, 256)
    if isinstance(grid, IntGrid):
        low = -grid.max_code if grid.sym else -2 * (grid.max_code // 2)
        w = rng.integers(low, low + 2 * grid.max_code + 1, shape) / 2
        w[:, ::16], w[:, 1::16] = low / 2, low / 2 + grid.max_code
    elif name == "llm-int8":
        w = rng.integers(-254, 255, shape) / 2
        w[:, 0] = 127
    else:
        levels = grid.codebook.magnitudes if name.startswith("fp8") else grid.codebook.values
        w = rng.choice((levels[:-1] + levels[1:]) / np.float32(2), shape)
        w = w * rng.choice([-1, 1], shape) if name.startswith("fp8") else w
        w[:, ::32] = levels[-1]
    return w.astype(np.float32)


def check_grid(name):
    """Every array equal to the reference's, bit by bit, and of its type."""
    done = 0
    for w in (*matrices(), ties(name)):
        want = rq.quantize(w, name)
        got = rq.quantize(w, name, backend="cuda")
        assert got.arrays.keys() == want.arrays.keys()
        for key, array in want.arrays.items():
            other = got.arrays[key]
            assert (other.dtype, other.shape) == (array.dtype, array.shape), key
            assert np.asarray(other).tobytes() == np.asarray(array).tobytes(), (key, w.shape)
        done += 1
    assert done == 5


GPTQ_OPTIONS = [
    {},
    {"act_order": True},
    {"act_order": True, "static_groups": True},
    {"group_params": "reference", "block_size": 50},
    {"block_size": 1},
]


def check_gptq(grid, n, k, options):
    w, H = layer(n, k, 2 * k)
    before = w.copy(), H.copy()
    got = gptq.quantize(w, H, grid, backend="cuda", **options)
    assert_same_but_for_near_ties(got, gptq.quantize(w, H, grid, **options))
    np.testing.assert_array_equal(w, before[0])
    np.testing.assert_array_equal(H, before[1])


def check_awq(grid, n=48, k=256):
    w, _ = layer(n, k, k)
    x = np.random.default_rng(61).standard_normal((64, k)).astype(np.float32) * np.exp(
        np.random.default_rng(62).standard_normal(k)
    ).astype(np.float32)
    got, want = (awq.search([w, 2 * w[:7]], x, grid, backend=b) for b in ("cuda", "numpy"))
    np.testing.assert_allclose(got.errors, want.errors, rtol=1e-3)
    assert got.alpha == want.alpha
    np.testing.assert_array_equal(got.scales, want.scales)


def check_int8(m, n, k, threshold=None):
    rng = np.random.default_rng(m)
    w, x = rows.gaussian(rng, n, k), rng.standard_normal((m, k)).astype(np.float32)
    x[m // 2, k // 2], x[0, 0] = 8, -6
    q = rq.quantize(w, "llm-int8")
    q = q if threshold is None else llm_int8.with_threshold(q, threshold)
    got, want = (rq.matmul(x, q, backend=b) for b in ("cuda", "numpy"))
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())
