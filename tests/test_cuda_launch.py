"""The CUDA path on a machine without a GPU: every kernel compiles, declarations are read, what is missing is named."""

import functools
import re

import numpy as np
import pytest
from refquant_kernels.cuda import launch

import refquant as rq
from refquant import ops
from refquant.errors import BackendUnavailable, BadInput

ARCHITECTURES = ("sm_80", "sm_89", "sm_90")
FILES = sorted(path.name for path in launch.FOLDER.glob("*.cu"))
UNITS = [(file, options) for file in FILES for options in launch.variants(file)]


def named(unit):
    return " ".join((unit[0], *unit[1]))


@functools.cache
def kernels_in(arch, file, options):
    """Names of the kernels of a file that one set of options compiles."""
    code = launch.cubin(file, arch, options)  # from the cache, where nothing has changed
    assert code[:4] == b"\x7fELF"
    return {name for name in declared(file) if name.encode() in code}


def declared(file):
    pattern = r'extern "C" __global__ void\s*(?:__launch_bounds__\([^)]*\))?\s+(\w+)'
    return set(re.findall(pattern, launch.sources(file)[file]))


@pytest.mark.parametrize("unit", UNITS, ids=named)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_compiles(unit, arch):
    assert kernels_in(arch, *unit)


@pytest.mark.parametrize("file", FILES)
def test_no_kernel_is_left_out(file):
    assert set().union(*(kernels_in("sm_90", file, options) for options in launch.variants(file))) == declared(file)


@pytest.mark.parametrize("unit", UNITS, ids=named)
def test_every_declaration_can_be_read(unit):
    defines = tuple(tuple(option[2:].split("=")) for option in unit[1] if option.startswith("-D") and "=" in option)
    text = launch.sources(unit[0])[unit[0]]
    for name in re.findall(r'extern "C" __global__ void\s*(?:__launch_bounds__\([^)]*\))?\s+(\w+)', text):
        assert launch.parameters(unit[0], name, defines)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of kernels of one's own, and an empty cache."""
    monkeypatch.setattr(launch, "FOLDER", tmp_path)
    monkeypatch.setenv("REFQUANT_CUDA_CACHE", str(tmp_path / "cache"))
    cached = (launch.sources, launch.parameters, launch.cubin)
    for function in cached:
        function.cache_clear()
    yield tmp_path
    for function in cached:
        function.cache_clear()


SOURCE = """#include "h.cuh"
// extern "C" __global__ void gone(int a) {}
extern "C" __global__ void __launch_bounds__(128) k(const X* __restrict__ x, long long n, float *y,
                                                    unsigned char* z /* bytes, all */, const uint4* w) {
    y[0] = n;
}
"""


def test_a_declaration_gives_the_types(folder):
    (folder / "a.cu").write_text(SOURCE)
    (folder / "h.cuh").write_text("typedef unsigned short f16;\n")
    want = (("x", "f16*"), ("n", "long long"), ("y", "float*"), ("z", "unsigned char*"), ("w", "uint4*"))
    assert launch.parameters("a.cu", "k", (("X", "f16"),)) == want
    with pytest.raises(BadInput, match="no rule for the parameter 'const X"):
        launch.parameters("a.cu", "k")
    with pytest.raises(BadInput, match="declares no kernel"):
        launch.parameters("a.cu", "gone")


def test_the_hash_covers_the_code_of_file_and_headers(folder):
    def hash_with(header, other=""):
        (folder / "a.cu").write_text(SOURCE)
        (folder / "h.cuh").write_text(header)
        (folder / "other.cuh").write_text(other)
        launch.sources.cache_clear()
        return launch.source_hash("a.cu")

    before = hash_with("typedef unsigned short f16;\n")
    assert hash_with("typedef unsigned short f16;\n", "int a;") == before
    assert hash_with("// a comment\ntypedef unsigned  short f16; /* another */\n") == before
    assert hash_with("typedef unsigned int f16;\n") != before


def test_compiled_code_is_kept_and_a_damaged_file_is_not_used(folder, monkeypatch):
    (folder / "a.cu").write_text('extern "C" __global__ void k(int* x) { x[0] = V; }\n')
    first = launch.cubin("a.cu", "sm_80", ("-DV=1",))
    (file,) = (folder / "cache").iterdir()
    compiled = []
    compile_source = launch.compile_source
    monkeypatch.setattr(launch, "compile_source", lambda *a: compiled.append(a) or compile_source(*a))
    launch.cubin.cache_clear()
    assert launch.cubin("a.cu", "sm_80", ("-DV=1",)) == first
    assert not compiled
    file.write_bytes(file.read_bytes()[:-1])
    launch.cubin.cache_clear()
    assert launch.cubin("a.cu", "sm_80", ("-DV=1",)) == first
    assert len(compiled) == 1
    launch.cubin("a.cu", "sm_80", ("-DV=2",))
    launch.cubin("a.cu", "sm_90", ("-DV=1",))
    assert len(compiled) == 3
    assert len(list((folder / "cache").iterdir())) == 3


def test_a_syntax_error_names_file_and_line(folder):
    (folder / "a.cu").write_text('extern "C" __global__ void k(int* x) {\n x[0] = ;\n}\n')
    with pytest.raises(BackendUnavailable, match=r"a\.cu\(2\): error"):
        launch.compile_source("a.cu", "sm_80")


def without_gpu() -> bool:
    import torch

    return not torch.cuda.is_available()


@pytest.mark.skipif(not without_gpu(), reason="this machine has a GPU")
def test_without_a_gpu_the_error_says_what_is_missing():
    ops.load_backend("cuda")  # importing works anywhere
    with pytest.raises(BackendUnavailable, match=r"'cuda': torch .*(built without CUDA|no NVIDIA GPU)"):
        launch.load("any.cu", "any")
    q = rq.quantize(np.ones((2, 32), np.float32), "Q4_0")
    with pytest.raises(BackendUnavailable, match="cuda"):
        rq.dequantize(q, backend="cuda")
