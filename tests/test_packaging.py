"""What an installation brings: fast import, no heavy libraries, no importable `kernels`."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def python(code: str, cwd) -> str:
    one_thread = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # an idle BLAS thread spins, and would be counted
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, text=True, capture_output=True, check=True, env=one_thread).stdout


def test_an_installed_refquant_does_not_make_kernels_importable(tmp_path):
    code = (
        "import refquant, importlib.util as u; s = u.find_spec('kernels');"
        "print('absent' if s is None else s.origin or 'namespace')"
    )
    assert python(code, tmp_path).strip() != "namespace", "the checkout is on sys.path: install with setuptools"


def test_import_loads_no_heavy_library_and_is_quick(tmp_path):
    code = (
        "import sys, time; began = time.process_time(); import refquant; spent = time.process_time() - began;"
        "print(sorted({'torch', 'numba', 'transformers', 'matplotlib', 'ipywidgets'} & set(sys.modules)), spent)"
    )
    heavy, seconds = zip(*(python(code, tmp_path).rsplit(" ", 1) for _ in range(5)), strict=True)
    assert set(heavy) == {"[]"}
    assert min(map(float, seconds)) < 0.2, "seconds of processor time, NumPy's own import included"


def test_every_package_of_the_checkout_is_listed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(folder.relative_to(base).parts)
        for base, top in ((ROOT, ROOT / "refquant"), (ROOT / "kernels", ROOT / "kernels" / "refquant_kernels"))
        for folder in [top, *top.rglob("*")]
        if folder.is_dir() and any(folder.glob("*.py"))
    }
    assert found == set(settings["packages"])


def test_kernels_holds_no_module_directly():
    assert not list((ROOT / "kernels").glob("*.py")), "a module there would make `kernels` importable"
