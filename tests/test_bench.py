"""The benchmark's own arithmetic, and that its peers compute the same as we do: a fast wrong peer proves nothing."""

import argparse
import json

import numpy as np
import pytest

import refquant as rq
from refquant import ops
from refquant.bench import cases, cpu, peers, recorded, report
from refquant.errors import BadInput


def test_runs_are_interleaved_and_the_first_is_not_counted():
    calls = []
    times = cpu.interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, runs=3)
    assert calls == ["a", "b"] * 4
    assert all(0 <= low <= median <= high for low, median, high in times.values())
    cpu.interleave({"c": lambda: calls.append("c")}, runs=1, at_least=0.01)
    assert calls.count("c") > 10


def test_the_published_gptq_decodes_to_what_ours_does():
    from gptq_cases import layer

    from refquant.grids import IntGrid
    from refquant.methods import gptq

    w, H = layer(32, 256, 1024)
    grid = IntGrid(4, 128, scale_dtype="float32")
    want = rq.dequantize(gptq.quantize(w, H, grid, group_params="reference").quantized)
    got = peers.published_gptq(w, H)().numpy()
    assert (np.abs(got - want).max(axis=1) > 1e-5).mean() <= 0.05  # a near-tie changes the rest of its row


def test_reading_reads_everything():
    from refquant_kernels.cpu.read import combine

    data = np.zeros(1024, np.uint8)
    assert combine(data) == 0
    for i in (0, 255, 700, 1020):
        data[:], data[i] = 0, 1
        assert combine(data) != 0


def test_a_row_of_the_table():
    row = {
        "operation": "matmul", "format": "Q4_K", "place": "memory", "threads": 2, "weights": 4_000_000,
        "bytes": 2_250_000, "numba": [0.0009, 0.001, 0.0011], "ggml": [0, 0.002, 0],
    }  # fmt: skip
    cells = ("matmul", "Q4_K", "memory", "2", "4000", "2.25", "", "20%", "2000", "2.00", "", "")
    assert report.cells(row) == cells
    assert report.cells(row | {"read": [0, 0.0005, 0], "read_bytes": 2_250_000})[6] == "50%"
    assert report.line(cells).split() == [cell for cell in cells if cell]
    assert report.cells(row | {"torch": [0, 0.004, 0]})[-2:] == ("1000 torch", "4.00")


@pytest.mark.parametrize("name", ["Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q4_K", "Q6_K", "IQ4_NL", "IQ4_XS"])
def test_ggml_as_a_peer_computes_what_we_compute(name):
    rng = np.random.default_rng(80)
    w, x = rng.standard_normal((8, 512)).astype(np.float32), rng.standard_normal(512).astype(np.float32)
    encode, blocks = peers.ggml_quantize(w, name)
    encode()
    q = rq.quantize(w, name)
    np.testing.assert_array_equal(blocks, q.arrays["blocks"])
    weights = peers.ggml_dequantize(blocks, name, w.shape)()
    np.testing.assert_array_equal(weights, rq.dequantize(q))
    for threads in (1, 2, 3):
        multiply, y = peers.ggml_matvec(x, blocks, name, threads)
        y[:] = np.nan
        multiply()
        assert np.abs(y - weights @ x).max() <= 0.01 * np.linalg.norm(x) * np.linalg.norm(weights, axis=1).max()


def test_torch_as_a_peer_computes_what_we_compute():
    rng = np.random.default_rng(81)
    x = rng.standard_normal(256).astype(np.float32)
    q = rq.quantize(rng.standard_normal((64, 256)).astype(np.float32), "int4-g128")
    fields = ops.unpack(q)
    multiply = peers.torch_int4(x, fields["codes"], fields["scales"].astype("f"), fields["zeros"].astype("f"), 128)
    want = rq.dequantize(q) @ x
    assert np.abs(multiply().float().numpy()[0] - want).max() <= 0.02 * np.abs(want).max()
    numbers = (fields["codes"], fields["scales"].astype("f"), fields["zeros"].astype("f"))
    twice = peers.torch_int4(x, *numbers, 128, copies=2)()[0]
    np.testing.assert_array_equal(twice.float().numpy(), np.tile(multiply()[0].float().numpy(), 2))
    w = rng.standard_normal((8, 256)).astype(np.float32)
    np.testing.assert_allclose(peers.torch_mv(x, w, "float32")().numpy(), w @ x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(peers.torch_mm(w[:3], w)().numpy(), w[:3] @ w.T, rtol=1e-4, atol=1e-4)
    halves = rq.quantize(w, "BF16").arrays["blocks"].view(np.int16)
    assert np.abs(peers.torch_mv(x, halves, "bfloat16")().float().numpy() - w @ x).max() <= 0.02 * np.abs(w @ x).max()


@pytest.mark.parametrize("name", ["Q4_0", "int4-g128", "llm-int8", "nf4"])
def test_a_large_matrix_is_rows_of_a_small_one(name, monkeypatch):
    monkeypatch.setattr(cases, "SHAPE", (8, 4096))
    one, large = rq.quantize(cases.weights(), name), cases.stacked(name, 1)
    assert 0.5e6 < large.nbytes <= 1.05 * 2**20
    np.testing.assert_array_equal(rq.dequantize(large)[-8:], rq.dequantize(one))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(cases, "SHAPE", (32, 4096))
    monkeypatch.setattr(cases, "HEIGHT", 64)
    monkeypatch.setattr(cases, "TOKENS", 16)
    monkeypatch.setattr(cpu, "read_bandwidth", lambda threads=1: 1e10 * threads)
    monkeypatch.setattr(cpu, "compile_all", lambda jobs: None)  # in this process, when first used

    def arguments(*given):
        parser = argparse.ArgumentParser()
        cpu.add_arguments(parser)
        return parser.parse_args(["--runs", "1", "--least", "0", "--cache", "1", "--memory", "2", *given])

    return arguments


def test_the_whole_command(small, tmp_path, capsys):
    files = [str(tmp_path / name) for name in ("out.json", "out.md", "out.png", "again.md")]
    given = ["--formats", "Q4_K,int4-g128", "--operations", "quantize,importance,dequantize,matmul,matmul_int8,prefill"]
    assert cpu.run(small(*given, "--json", files[0], "--markdown", files[1], "--picture", files[2])) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    found = [(row["operation"], row["format"], row["place"], row["threads"]) for row in result["rows"]]
    conversions = [
        ("quantize", "Q4_K"), ("quantize", "int4-g128"), ("importance", "Q4_K"), ("dequantize", "Q4_K"),
        ("dequantize", "int4-g128"),
    ]  # fmt: skip
    prefills = [("prefill", name, "16 tokens", threads) for name in ("Q4_K", "int4-g128") for threads in (1, 2)]
    assert found[-9:] == [(*names, "cache", 1) for names in conversions] + prefills
    assert set(found[:-9]) == {
        (operation, name, place, threads)
        for operation in ("matmul", "matmul_int8")
        for name in ("Q4_K", "int4-g128", "F32")
        for place in ("cache", "memory")
        for threads in (1, 2)
        if (operation, name) != ("matmul_int8", "F32")
    }
    for row in result["rows"]:  # a plain reader of the same bytes, but for less than 256 a thread
        assert ("read" in row) == (row["place"] == "memory")
        assert 0.95 * row["bytes"] < row.get("read_bytes", row["bytes"]) <= row["bytes"]
    assert (tmp_path / "out.md").read_text() == report.markdown(result)
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    assert "matmul_int8" in capsys.readouterr().out
    assert cpu.run(small("--from", files[0], "--markdown", files[3])) == 0
    assert (tmp_path / "again.md").read_text() == (tmp_path / "out.md").read_text()
    assert cpu.run(small("--from", files[0], "--beside", files[0], "--markdown", files[3])) == 0
    first, second = recorded.tables((tmp_path / "again.md").read_text())
    assert first.rows == second.rows
    assert second.heading == f"The same on {result['machine']['processor']}"


def test_the_roof_is_the_best_that_reading_got():
    row = {"threads": 2, "read": [0.9, 1.0, 1.1], "read_bytes": 5e9}
    result = {"machine": {"read_bandwidth": {"1": 2e9, "2": 4e9}}, "rows": [row, row | {"read": [1.9, 2.0, 2.1]}, {}]}
    assert report.read_speeds(result) == {"1": 2e9, "2": 5e9}
    assert result["machine"]["read_bandwidth"]["2"] == 4e9


def test_what_there_was_no_time_for_is_told(small, capsys):
    args = small(
        "--formats", "Q8_0", "--operations", "dequantize", "--seconds", "1e-9", "--memory", "0", "--cache", "0"
    )
    result = cpu.measure(args)
    assert (result["left_out"], result["rows"]) == (1, [])
    assert "Left out for want of time: 1" in report.markdown(result)


def test_more_threads_than_there_are_is_refused(small):
    with pytest.raises(BadInput, match="threads 1000"):
        cpu.measure(small("--formats", "Q8_0", "--operations", "matmul", "--threads", "1000"))


def test_the_recorded_table_is_that_of_the_recorded_measurements(tmp_path):
    """kernels/README.md is generated, not typed."""
    from pathlib import Path

    from refquant.bench import gpu_report

    kernels = Path(__file__).resolve().parents[1] / "kernels"
    result, other = (json.loads((kernels / name).read_text()) for name in ("cpu.json", "cpu_xeon.json"))
    assert gpu_report.without_gpu_part((kernels / "README.md").read_text()) == report.markdown(result, other)
    places = {(row["operation"], row["format"], row["place"], row["threads"]) for row in result["rows"]}
    assert {("matmul_int8", "Q6_K", "memory", 2), ("matmul", "int4-g128", "memory", 1)} <= places
