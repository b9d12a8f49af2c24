"""The CUDA encoders, RTN, GPTQ and what torch does beside them, without a GPU: whole kernels, run on the host.

The block formats are compared with ggml's own bytes, everything else with the NumPy reference. What this cannot show
(the GPU's NaN, races between warps, the arithmetic of cuBLAS) `tests/gpu` does, on a GPU.
"""

import cuda_cases
import ggml
import gptq_cases
import host_cuda
import numpy as np
import pytest
import rows

import refquant as rq
from refquant.errors import BadInput, NotPositiveDefinite
from refquant.methods import gptq

pytestmark = pytest.mark.skipif(host_cuda.COMPILER is None, reason="no g++ to compile the kernels with")


@pytest.fixture(autouse=True)
def _on_the_host(monkeypatch):
    host_cuda.use(monkeypatch)


def encode(w, name, importance=None):
    return rq.quantize(w, name, importance=importance, backend="cuda").arrays["blocks"]


@pytest.mark.parametrize("name", cuda_cases.ENCODED)
def test_encode_equals_ggml(name, full):
    w = cuda_cases.blocks(70, 400 if full else 24)
    for kind in rows.IMPORTANCE:
        importance = rows.importance(kind, np.random.default_rng(71), w.shape[1])
        want = ggml.quantize(w, name, importance)
        cuda_cases.assert_same_bytes(encode(w, name, importance), want, ggml.sizes(name)[1])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("Q2_K", "one column in 16"), ("Q2_K", "one column in 64"), ("Q3_K", "none"), ("Q4_K", "one column in 64")],
)
def test_rare_branches(name, kind):
    """Negative scales that run over into their neighbours, and the fifth round of the descent: 1 block in thousands."""
    rng = np.random.default_rng(32)
    w = rows.crafted(rng, 1500, 512)
    importance = rows.importance(kind, rng, 512)
    cuda_cases.assert_same_bytes(encode(w, name, importance), ggml.quantize(w, name, importance), ggml.sizes(name)[1])


@pytest.mark.parametrize("name", cuda_cases.ENCODED)
def test_blocks_that_do_not_fill_a_tile(name):
    for w in cuda_cases.ragged(name):
        for kind in ("none", "ordinary"):
            importance = rows.importance(kind, np.random.default_rng(72), w.shape[1])
            want = ggml.quantize(w, name, importance)
            cuda_cases.assert_same_bytes(encode(w, name, importance), want, ggml.sizes(name)[1])


@pytest.mark.parametrize("rung", ["v1", "v2"])
def test_the_plain_rungs_make_the_same_bytes(rung):
    import torch

    w = cuda_cases.blocks(73, 30)
    blocks, threads = w.size // 256, 32 if rung == "v1" else 16  # blocks of the format that a thread block takes
    out = torch.empty((len(w), 2 * 144), dtype=torch.uint8)
    kernel = host_cuda.load("quantize_k_plain.cu", f"q4_k_{rung}")
    kernel((-(-blocks // threads), 1, 1), (32 if rung == "v1" else 128, 1, 1), torch.from_numpy(w), blocks, out)
    cuda_cases.assert_same_bytes(out.numpy(), ggml.quantize(w, "Q4_K"), 144)


def test_iq4_by_comparisons_makes_the_same_bytes(monkeypatch):
    from dataclasses import replace

    from refquant_kernels.cuda import encoders

    plain = replace(encoders.ENCODERS["IQ4_XS"], defines={"SUB_BLOCKS": 8, "LOOKUP": 0})
    monkeypatch.setitem(encoders.ENCODERS, "IQ4_XS", plain)
    w = cuda_cases.blocks(74, 30)
    cuda_cases.assert_same_bytes(encode(w, "IQ4_XS"), ggml.quantize(w, "IQ4_XS"), 136)


def test_the_logarithm_of_mxfp4_just_below_every_power_of_two():
    """Where float32's log2 rounds up to the power, ggml's exponent does, too."""
    powers = np.ldexp(np.float32(1), np.arange(-126, 128))
    steps = np.arange(0, 96)
    peaks = (powers.view(np.int32)[:, None] - steps).view(np.float32)
    w = np.zeros((peaks.size, 32), np.float32)
    w[:, 3] = peaks.ravel()
    cuda_cases.assert_same_bytes(encode(w, "MXFP4"), ggml.quantize(w, "MXFP4"), 17)


@pytest.mark.parametrize("name", cuda_cases.GRIDS)
def test_grids_equal_the_reference(name):
    cuda_cases.check_grid(name)


@pytest.mark.parametrize("name", ["int4-g128", "int4-row", "fp8-e4m3", "Q4_K"])
def test_views_and_other_floats_are_accepted(name):
    w = rows.gaussian(np.random.default_rng(75), 256, 512)
    for view in (w.T, w[::2], w[:, ::-1], w.astype(np.float64)[:3], w[1:, 256:]):
        got, want = (rq.quantize(view, name, backend=b) for b in ("cuda", "numpy"))
        for key, array in want.arrays.items():
            np.testing.assert_array_equal(got.arrays[key], array)


@pytest.mark.parametrize("name", ["int4-g128", "int4-row", "llm-int8"])
def test_weights_that_float16_cannot_scale_are_refused(name):
    w = np.full((2, 256), 1e7, np.float32)
    with pytest.raises(BadInput, match="float16"):
        rq.quantize(w, name, backend="cuda")


@pytest.mark.parametrize("options", cuda_cases.GPTQ_OPTIONS, ids=str)
@pytest.mark.parametrize("grid", ["int4-g128", "int4-g32", "int3-row-sym", "int8-g100"])
@pytest.mark.parametrize(("n", "k"), [(1, 96), (5, 130), (13, 300)])
def test_gptq(n, k, grid, options):
    cuda_cases.check_gptq(grid, n, k, options)


def test_gptq_of_a_hessian_that_cannot_be_factored():
    hilbert = 1 / (np.arange(13)[:, None] + np.arange(13) + 1.0)
    w = np.random.default_rng(61).standard_normal((4, 13)).astype(np.float32)
    got, want = (gptq.quantize(w, hilbert, "int4-row", damp=0.0, backend=b) for b in ("cuda", "numpy"))
    gptq_cases.assert_same_but_for_near_ties(got, want)
    with pytest.raises(NotPositiveDefinite):
        gptq.quantize(w, -hilbert, "int4-row", backend="cuda")
    with pytest.raises(BadInput, match="float16"):
        gptq.quantize(w * np.float32(1e8), np.eye(13, dtype=np.float32), "int4-row", backend="cuda")


def test_the_blocks_of_columns():
    """At most 128 columns, no group that starts within a block and ends beyond it, none across `block_size`."""
    from refquant_kernels.cuda.gptq import blocks

    assert list(blocks(300, [0, 100, 200, 300], 300)) == [(0, 100), (100, 200), (200, 300)]
    assert list(blocks(300, [0, 300], 300)) == [(0, 128), (128, 256), (256, 300)]
    assert list(blocks(100, [0, 32, 64, 96, 100], 50)) == [(0, 32), (32, 50), (50, 100)]
    assert list(blocks(256, [0, 32, 64, 96, 128, 160, 192, 224, 256], 256)) == [(0, 128), (128, 256)]


@pytest.mark.parametrize("grid", ["int4-g128", "int3-row-sym"])
def test_awq(grid):
    cuda_cases.check_awq(grid)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 8, 16), (9, 33, 257), (40, 16, 64)])
@pytest.mark.parametrize("threshold", [None, 0.0, 1.5])
def test_llm_int8(m, n, k, threshold):
    cuda_cases.check_int8(m, n, k, threshold)


# ---- the harness itself


def test_a_missing_barrier_shows(tmp_path, monkeypatch):
    """Each thread reads what its neighbour wrote: wrong without the barrier, right with it."""
    import torch
    from refquant_kernels.cuda import launch

    text = """extern "C" __global__ void turn(const int* x, int* y) {
    __shared__ int held[64];
    held[threadIdx.x] = x[threadIdx.x];
    BARRIER;
    y[threadIdx.x] = held[63 - threadIdx.x];
}
"""
    (tmp_path / "turn.cu").write_text(text)
    monkeypatch.setattr(host_cuda, "FOLDER", tmp_path)
    monkeypatch.setattr(launch, "FOLDER", tmp_path)
    x, results = torch.arange(64, dtype=torch.int32), []
    for barrier in ("__syncthreads()", "(void)0"):
        y = torch.empty(64, dtype=torch.int32)
        host_cuda.load("turn.cu", "turn", BARRIER=barrier)((1, 1, 1), (64, 1, 1), x, y)
        results.append(torch.equal(y, x.flip(0)))
    assert results == [True, False]
