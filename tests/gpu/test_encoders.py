"""The CUDA encoders, RTN, GPTQ, AWQ's search and LLM.int8's product on a GPU: the reference's results."""

import cuda_cases
import numpy as np
import pytest
import rows
import torch

import refquant as rq
from refquant.quantized import find_format

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
KINDS = ["none", "ordinary", "zero", "one column in 64", "huge", "any scale"]


def check(w, name, importance):
    got, want = (rq.quantize(w, name, importance=importance, backend=b).arrays["blocks"] for b in ("cuda", "numpy"))
    row = find_format(name).nbytes((1, w.shape[1]))
    cuda_cases.assert_same_bytes(got, want, row)


@pytest.mark.parametrize("name", cuda_cases.ENCODED)
@pytest.mark.parametrize("kind", KINDS)
def test_encode_equals_the_reference(name, kind):
    w = cuda_cases.blocks(80, 100)
    check(w, name, rows.importance(kind, np.random.default_rng(81), w.shape[1]))


@pytest.mark.parametrize("name", cuda_cases.ENCODED)
def test_blocks_that_do_not_fill_a_tile(name):
    for w in cuda_cases.ragged(name):
        check(w, name, rows.importance("ordinary", np.random.default_rng(82), w.shape[1]))


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q4_0", "IQ4_XS", "TQ2_0", "MXFP4", "F16"])
def test_tensors_graphs_streams_and_odd_addresses(name):
    """`encode` of weights on the GPU: on a stream of one's own, in a graph, from an address such as 4 mod 16."""
    from refquant_kernels.cuda.encoders import encode

    w = rows.heavy_tailed(np.random.default_rng(83), 33, 512)
    want = rq.quantize(w, name).arrays["blocks"]
    there = torch.from_numpy(w).cuda()
    shifted = torch.empty(w.size + 1, device="cuda")[1:].view(w.shape)
    shifted.copy_(there)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        results = [encode(there, name), encode(shifted, name)]
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = encode(there, name)
    captured.fill_(0xA5)
    graph.replay()
    torch.cuda.synchronize()
    for result in (*results, captured):
        np.testing.assert_array_equal(result.cpu().numpy(), want)


@pytest.mark.parametrize("name", cuda_cases.GRIDS)
def test_grids_equal_the_reference(name):
    cuda_cases.check_grid(name)


@pytest.mark.parametrize("options", cuda_cases.GPTQ_OPTIONS, ids=str)
@pytest.mark.parametrize("grid", ["int4-g128", "int4-g32", "int3-row-sym", "int8-g100"])
@pytest.mark.parametrize(("n", "k"), [(1, 96), (5, 130), (100, 384)])
def test_gptq(n, k, grid, options):
    cuda_cases.check_gptq(grid, n, k, options)


@pytest.mark.parametrize("grid", ["int4-g128", "int3-row-sym"])
def test_awq(grid):
    cuda_cases.check_awq(grid)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 8, 16), (9, 33, 257), (40, 16, 64), (200, 512, 384)])
@pytest.mark.parametrize("threshold", [None, 0.0, 1.5])
def test_llm_int8(m, n, k, threshold):
    cuda_cases.check_int8(m, n, k, threshold)
