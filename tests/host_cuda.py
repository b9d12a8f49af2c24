"""The .cu files of refquant_kernels compiled as host C++, so that whole kernels run, and are tested, without a GPU.

`host_cuda.h` says how. A kernel made here is called as one of `launch.load`, with CPU tensors in place of CUDA ones;
`use` puts it, and torch's CPU, in the place of the real ones.
"""

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parents[1] / "kernels/refquant_kernels/cuda"
HEADER = Path(__file__).with_name("host_cuda.h")
COMPILER = shutil.which("g++")
NUMBERS = {"int": ctypes.c_int, "unsigned": ctypes.c_uint, "long long": ctypes.c_longlong, "float": ctypes.c_float}


@functools.cache
def library(file, defines):
    """A shared library with every kernel of `file` as host_<name>(grid, block, pointers to the arguments)."""
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-w", *(f"-D{k}={v}" for k, v in defines)]
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "host.cpp", Path(folder) / "host.so"
        text = f'#include "{HEADER}"\n#include "{FOLDER / file}"\n'
        source.write_text(text)
        expanded = subprocess.run([COMPILER, *flags, "-E", source], capture_output=True, text=True, check=True).stdout
        names = re.findall(r'^extern "C"\s+void\s+(\w+)\(const (?!int\* grid)', expanded, re.M)
        source.write_text(text + "".join(f"HOST_KERNEL({name})\n" for name in names))
        subprocess.run([COMPILER, *flags, "-shared", source, "-o", made], check=True)
        return ctypes.CDLL(str(made))


def load(file, name, options=(), **defines):
    """As `launch.load`."""
    from refquant_kernels.cuda import launch

    function = getattr(library(file, tuple(sorted(defines.items()))), f"host_{name}")
    types = [kind for _, kind in launch.parameters(file, name, tuple(sorted(defines.items())))]

    def kernel(grid, block, *args, shared=0):
        assert len(args) == len(types), (name, types)
        held = []
        for arg, kind in zip(args, types, strict=True):
            if kind.endswith("*"):
                wanted = launch.POINTERS[kind[:-1]][1]
                assert arg.is_contiguous()
                assert not wanted or str(arg.dtype).removeprefix("torch.") in wanted, (name, kind, arg.dtype)
                assert arg.data_ptr() % launch.POINTERS[kind[:-1]][0] == 0
                held.append(ctypes.c_void_p(arg.data_ptr()))
            else:
                held.append(NUMBERS[kind](arg))
        pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(each) for each in held))
        function((ctypes.c_int * 3)(*grid), (ctypes.c_int * 3)(*block), pointers)

    return kernel


def use(monkeypatch):
    """Let the backend "cuda" run on the host."""
    from refquant_kernels.cuda import launch, tensors

    monkeypatch.setattr(launch, "torch", lambda: torch)
    monkeypatch.setattr(launch, "load", load)
    monkeypatch.setattr(tensors, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch, "empty", poisoned)


_empty = torch.empty


def poisoned(*args, **options):
    """torch.empty, filled with bytes that no result has by accident."""
    made = _empty(*args, **options)
    made.view(torch.uint8).fill_(0xA5) if made.dim() else made
    return made
