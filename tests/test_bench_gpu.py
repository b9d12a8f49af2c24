"""What was measured on a GPU: of these sources? And its tables and picture, from numbers made up here."""

import json
from pathlib import Path

import pytest
from refquant_kernels.cuda import launch

from refquant.bench import gpu_report
from refquant.cli import main

ROOT = Path(__file__).resolve().parents[1]
RECORD = launch.FOLDER / "measured.json"


def made_up():
    row = {"n": 8192, "k": 28672, "us": 50.0, "bytes": 122_000_000}
    parts = {"table": "decode", "tokens": 1, "parts": {"products": [7.0, 5.5], "between": 4.25, "ends": 150.4}}
    rows = [
        row | {"table": "ladder", "name": "gemv_v1 int4-g128", "tokens": 1},
        row | {"table": "vectors", "name": "int4-g128", "tokens": 1, "cublas": 166.0, "torch_int4": 64.0},
        *(
            row | {"table": "tokens", "name": "int4-g128", "tokens": m, "cublas": 170.0, "torch_int4": 64.0 * m}
            for m in (1, 16)
        ),
        row | parts | {"name": "F16", "us": 6000.0, "bytes": 15_000_000_000, "predicted": 6250.0},
        row | parts | {"name": "int4-g128", "us": 2000.0, "bytes": 4_000_000_000, "predicted": 1800.0},
        row | {"table": "encoders", "name": "Q4_K", "tokens": 1, "us": 290.0},
    ]
    about = {"device": "a GPU", "driver": "1", "torch": "2", "compiler": "13.0", "date": "2026-01-01", "runs": 7}
    return about | {"read_bandwidth": 2.5e12, "sources": {"a.cu": "ab" * 32}, "rows": rows}


def test_tables_say_what_was_measured():
    text = gpu_report.markdown(made_up())
    assert "| gemv_v1 int4-g128 | 8192, 28672 | 1 | 50.0 | 48.8 | 2440 | 98% |" in text
    assert "| int4-g128 | 8192, 28672 | 1 | 50.0 | 48.8 | 2440 | 98% | 166.0 | 64.0 | 3.32 |" in text
    assert "| int4-g128 | 2000 | 500 | 3.00 | 4.00 | 1600 | 1.25 | 3.75 | 1800 | 1.11 |" in text
    assert "int4-g128: 7.0 + 5.5 the products, 4.2 between them, 150 without layers" in text
    assert "| Q4_K | 8192, 28672 | 1 | 290.0 | 48.8 | 421 | 17% | 809.9 |" in text
    assert "`a.cu` abababababababab" in text


def test_the_gpu_part_of_a_readme_is_renewed_and_the_rest_kept():
    once = gpu_report.renew("# CPU\n\ntable\n", made_up())
    assert once.startswith("# CPU\n\ntable\n\n" + gpu_report.MARK)
    assert gpu_report.renew(once, made_up()) == once
    assert gpu_report.without_gpu_part(once) == "# CPU\n\ntable\n"
    assert gpu_report.gpu_part(once) == gpu_report.markdown(made_up())
    assert gpu_report.gpu_part("# CPU\n") == ""


def test_the_picture(tmp_path):
    gpu_report.draw(made_up(), tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").read_bytes()[:4] == b"\x89PNG"


def test_without_a_gpu_the_command_says_so(capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert main(["bench", "gpu"]) == 1
    assert "cuda" in capsys.readouterr().err


def test_what_is_recorded_was_measured_of_these_sources():
    result = json.loads(RECORD.read_text())
    assert {"device", "driver", "date", "compiler", "read_bandwidth"} <= result.keys()
    now = {name: launch.source_hash(name) for name in result["sources"]}
    assert result["sources"] == now, "kernels have changed since: refquant bench gpu --json ... --markdown ..."


def test_the_readme_shows_what_is_recorded():
    text = (ROOT / "kernels" / "README.md").read_text()
    assert gpu_report.gpu_part(text) == gpu_report.markdown(json.loads(RECORD.read_text()))
