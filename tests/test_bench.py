"""The benchmark's own arithmetic, and that its peers compute the same as we do: a fast wrong peer proves nothing."""

import argparse
import json

import numpy as np
import pytest

import refquant as rq
from refquant import ops
from refquant.bench import cpu, peers


def test_runs_are_interleaved_and_the_first_is_not_counted():
    calls = []
    times = cpu.interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, runs=3)
    assert calls == ["a", "b"] * 4
    assert all(0 <= low <= median <= high for low, median, high in times.values())


def test_a_row_of_the_table():
    row = {
        "operation": "matmul", "format": "Q4_K", "weights": 4_000_000, "bytes": 2_250_000,
        "numba": [0.0009, 0.001, 0.0011], "ggml": [0, 0.002, 0],
    }  # fmt: skip
    assert cpu.cells(row) == ("matmul", "Q4_K", "4000", "2.25", "20%", "2000", "2.00", "", "")


@pytest.mark.parametrize("name", ["Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q4_K", "Q6_K", "IQ4_NL", "IQ4_XS"])
def test_ggml_as_a_peer_computes_what_we_compute(name):
    rng = np.random.default_rng(80)
    w, x = rng.standard_normal((8, 512)).astype(np.float32), rng.standard_normal(512).astype(np.float32)
    encode, blocks = peers.ggml_quantize(w, name)
    encode()
    q = rq.quantize(w, name)
    np.testing.assert_array_equal(blocks, q.arrays["blocks"])
    decode, weights = peers.ggml_dequantize(blocks, name, w.shape)
    decode()
    np.testing.assert_array_equal(weights, rq.dequantize(q))
    multiply, y = peers.ggml_matvec(x, blocks, name)
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


def test_the_whole_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cpu, "SHAPE", (32, 4096))
    monkeypatch.setattr(cpu, "read_bandwidth", lambda: 1e10)
    parser = argparse.ArgumentParser()
    cpu.add_arguments(parser)
    files = [str(tmp_path / name) for name in ("out.json", "out.md")]
    args = parser.parse_args(
        ["--formats", "Q4_K,int4-g128", "--operations", "quantize,importance,dequantize,matmul,matmul_int8", "--runs",
         "1", "--megabytes", "1", "--json", files[0], "--markdown", files[1]]
    )  # fmt: skip
    assert cpu.run(args) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert [(row["operation"], row["format"]) for row in result["rows"]] == [
        ("quantize", "Q4_K"), ("quantize", "int4-g128"), ("importance", "Q4_K"), ("dequantize", "Q4_K"),
        ("dequantize", "int4-g128"), ("matmul", "Q4_K"), ("matmul", "int4-g128"), ("matmul_int8", "Q4_K"),
    ]  # fmt: skip
    assert (tmp_path / "out.md").read_text() == cpu.markdown(result)
    assert "matmul_int8" in capsys.readouterr().out
