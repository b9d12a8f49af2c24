"""Compile the .cu files of this folder when they are first used, and launch their kernels: the only file that does.

    kernel = launch.load("decode.cu", "decode_q4_k", BITS=4)           # -DBITS=4; compiled once, kept on disk
    kernel((blocks, 1, 1), (256, 1, 1), w, scales, n, k, out)          # on the current stream of w's device

The compiler is NVRTC, which every CUDA build of torch brings with it; no toolkit, no nvcc, no CUDA_HOME. It and the
driver are called through their documented C interfaces with ctypes, in torch's context and on torch's current stream,
so launches can be captured in a CUDA graph. (torch's own `torch.cuda._compile_kernel` checks no dtype, compiles anew at
every call and takes 34 us a launch; `cuda.core` would be one dependency more for a dozen functions.)

What a kernel may take is read from its declaration, ``extern "C" __global__ void name(const f16* x, int n)``, and each
call is checked against it:

    float* int* double* signed char* ...   a tensor of that dtype
    f16* bf16*                             float16, bfloat16 (16-bit patterns; see numbers.cuh)
    unsigned* uint2* uint4* char*          any dtype, on a boundary of 4, 8, 16, 1 bytes: raw memory
    int unsigned float double, long long   a number

A tensor must be contiguous and on the same device as the others. Types given by a define (`-DX=f16`) are resolved.

Compiled code is kept in the user's cache folder, named by a hash of the source, its headers, the options, the
architecture and the compiler's version; where none can be written, it is compiled anew in every process.

A file that needs options says so, in lines `// compile with: -DBITS=4`: one set of options each. The tests compile
every file with each of them, for every architecture that is supported, on machines without a GPU.

Leaves out: calls of one kernel from several threads at once, several GPUs in one launch, clusters, cooperative
launches, textures.
"""

import ctypes
import functools
import hashlib
import importlib.util
import os
import re
import struct
import sys
from pathlib import Path

from refquant.errors import BackendUnavailable, BadInput

FOLDER = Path(__file__).parent
LEAST = (8, 0)  # compute capability: mma.sync m16n8k16 and cp.async

# name in a declaration -> (bytes of alignment, names of the torch dtypes it may point to; none: any)
POINTERS = {
    "float": (4, ("float32",)),
    "double": (8, ("float64",)),
    "int": (4, ("int32",)),
    "long long": (8, ("int64",)),
    "signed char": (1, ("int8",)),
    "unsigned char": (1, ("uint8",)),
    "f16": (2, ("float16",)),
    "bf16": (2, ("bfloat16",)),
    "char": (1, ()),
    "unsigned short": (2, ()),
    "unsigned": (4, ()),
    "uint2": (8, ()),
    "uint4": (16, ()),
}
SCALARS = {"int": "i", "unsigned": "I", "long long": "q", "float": "f", "double": "d"}


# ---- what the machine has


@functools.cache
def torch():
    """The torch module, if it can reach a GPU that the kernels can run on; else an error that says what is missing."""
    try:
        import torch
    except ImportError:
        raise BackendUnavailable("backend 'cuda': torch is not installed; pip install torch") from None
    if torch.version.cuda is None:
        raise BackendUnavailable(f"backend 'cuda': torch {torch.__version__} was built without CUDA")
    if not torch.cuda.is_available():
        raise BackendUnavailable("backend 'cuda': torch finds no NVIDIA GPU or no driver on this machine")
    if torch.cuda.get_device_capability() < LEAST:
        raise BackendUnavailable(
            f"backend 'cuda': {torch.cuda.get_device_name()} has compute capability "
            f"{torch.cuda.get_device_capability()}; the kernels need {LEAST}"
        )
    return torch


@functools.cache
def capability(device: int) -> tuple[int, int]:
    """Compute capability of a device."""
    return torch().cuda.get_device_capability(device)


def current_stream(device: int) -> int:
    """Handle of torch's current stream on a device, the quick way (as torch's own compiler asks for it)."""
    return torch()._C._cuda_getCurrentRawStream(device)


@functools.cache
def properties(device: int) -> tuple[int, int]:
    """Multiprocessors of a device, and bytes of shared memory that one block may have."""
    found = torch().cuda.get_device_properties(device)
    return found.multi_processor_count, found.shared_memory_per_block_optin


@functools.cache
def nvrtc():
    """NVRTC: the one that torch brings or a wheel has installed, else the system's."""
    found = importlib.util.find_spec("nvidia")
    folders = [Path(place) for place in found.submodule_search_locations] if found else []
    files = [str(file) for folder in folders for file in sorted(folder.glob("*/lib/libnvrtc.so.*"), reverse=True)]
    if "torch" in sys.modules and sys.modules["torch"].version.cuda:  # the one of torch's own CUDA version first
        major = sys.modules["torch"].version.cuda.split(".")[0]
        files.sort(key=lambda name: not name.endswith(f".so.{major}"))
    for name in [*files, "libnvrtc.so.13", "libnvrtc.so.12"]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise BackendUnavailable(
        "backend 'cuda': no NVRTC, the run-time compiler; CUDA builds of torch bring it, "
        "and so does pip install nvidia-cuda-nvrtc"
    )


@functools.cache
def driver():
    """The driver's library."""
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise BackendUnavailable("backend 'cuda': no NVIDIA driver (libcuda.so.1) on this machine") from None


@functools.cache
def launcher():
    """The driver's function that launches a kernel."""
    function = driver().cuLaunchKernelEx
    function.argtypes = [ctypes.c_void_p] * 4
    return function


def _driver_call(name: str, *args) -> None:
    _check(name, getattr(driver(), name)(*args))


def _check(name: str, status: int) -> None:
    if status:
        text = ctypes.c_char_p()
        driver().cuGetErrorString(status, ctypes.byref(text))
        raise BackendUnavailable(f"{name}: {(text.value or b'unknown').decode()} (CUDA error {status})")


def compiler_version() -> tuple[int, int]:
    """NVRTC's version."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


# ---- compiling


@functools.cache
def sources(file: str) -> dict[str, str]:
    """Text of a .cu file and of every header in this folder that it includes, by name, the file itself first."""
    texts, names = {}, [file]
    for name in names:
        texts[name] = (FOLDER / name).read_text(encoding="utf-8")
        names += [found for found in re.findall(r'^#include "(.+)"', texts[name], re.M) if found not in names]
    return texts


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)


def source_hash(file: str) -> str:
    """SHA-256 of a .cu file and its headers, comments and spacing left out: what a recorded measurement was made of."""
    code = "".join(f"{name}\0{' '.join(_COMMENT.sub(' ', text).split())}\0" for name, text in sources(file).items())
    return hashlib.sha256(code.encode()).hexdigest()


def compile_source(file: str, arch: str, options: tuple[str, ...] = ()) -> bytes:
    """Machine code (a cubin) of a .cu file for an architecture such as "sm_90"; needs no GPU and no driver."""
    library, texts = nvrtc(), sources(file)
    headers = [(name.encode(), text.encode()) for name, text in texts.items() if name != file]
    names = (ctypes.c_char_p * len(headers))(*(name for name, _ in headers))
    contents = (ctypes.c_char_p * len(headers))(*(text for _, text in headers))
    program = ctypes.c_void_p()
    library.nvrtcCreateProgram(
        ctypes.byref(program), texts[file].encode(), file.encode(), len(headers), contents, names
    )
    flags = [flag.encode() for flag in (f"--gpu-architecture={arch}", "--std=c++17", *options)]
    try:
        status = library.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*flags))
        if status:
            log = _text(program, "ProgramLog").decode(errors="replace").strip("\0\n")
            raise BackendUnavailable(f"{file} for {arch} with {' '.join(options)}: NVRTC error {status}\n{log}")
        return _text(program, "CUBIN")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _text(program, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(nvrtc(), f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(nvrtc(), f"nvrtcGet{what}")(program, buffer)
    return buffer.raw


def cache_folder() -> Path:
    """Where compiled code is kept: `REFQUANT_CUDA_CACHE`, else in the user's cache folder."""
    if named := os.environ.get("REFQUANT_CUDA_CACHE"):
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_cache_dir("refquant")) / "cuda"


@functools.cache
def cubin(file: str, arch: str, options: tuple[str, ...] = ()) -> bytes:
    """`compile_source`, once, and then from disk. A damaged file is compiled again."""
    stamp = repr((source_hash(file), arch, options, compiler_version()))
    path = cache_folder() / f"{Path(file).stem}-{hashlib.sha256(stamp.encode()).hexdigest()[:32]}.cubin"
    try:
        data = path.read_bytes()
        if hashlib.sha256(data[32:]).digest() == data[:32]:
            return data[32:]
    except OSError:
        pass
    code = compile_source(file, arch, options)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(hashlib.sha256(code).digest() + code)
        part.replace(path)
    except OSError:
        pass
    return code


def variants(file: str) -> list[tuple[str, ...]]:
    """Options that a .cu file says it is compiled with, one set for every line `// compile with: -DA=1 --flag`."""
    found = re.findall(r"^// compile with:(.*)$", sources(file)[file], re.M)
    return [tuple(line.split()) for line in found] or [()]


# ---- what a kernel takes


@functools.cache
def parameters(file: str, name: str, defines: tuple = ()) -> tuple[tuple[str, str], ...]:
    """(parameter, type) of a kernel in declared order, types without const and __restrict__, such as "f16*"."""
    text = _COMMENT.sub(" ", sources(file)[file])
    found = re.search(rf'extern "C" __global__ void\s*(?:__launch_bounds__\([^)]*\))?\s+{name}\s*\(([^)]*)\)', text)
    if not found:
        raise BadInput(f'{file} declares no kernel extern "C" __global__ void {name}(...)')
    result, known = [], dict(defines)
    for declaration in found[1].split(","):
        words = re.sub(r"\b(const|__restrict__)\b", " ", declaration).replace("*", " * ").split()
        star = "*" if "*" in words else ""
        kind = " ".join(word for word in words[:-1] if word != "*")
        kind = str(known.get(kind, kind))
        if kind not in (POINTERS if star else SCALARS):
            raise BadInput(f"{file}: {name}: no rule for the parameter {declaration.strip()!r}")
        result.append((words[-1], kind + star))
    return tuple(result)


# CUlaunchConfig: grid, block, bytes of shared memory, stream, attributes, how many. CUlaunchAttribute: id, value; the
# one attribute is CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION.
_CONFIG = struct.Struct("@7IPPI")
_OVERLAP = ctypes.create_string_buffer(struct.pack("@i4xi60x", 6, 1))


class Kernel:
    """A kernel and what it takes. Call it as `kernel(grid, block, *args, shared=bytes)`."""

    def __init__(self, file: str, name: str, options: tuple[str, ...], defines: tuple):
        self.file, self.name, self.options = file, name, options
        self.parameters = parameters(file, name, defines)
        # (place, boundary - 1, dtypes) of every pointer; the first one's device is the kernel's
        self._pointers = [
            (i, POINTERS[kind[:-1]][0] - 1, {getattr(torch(), dtype) for dtype in POINTERS[kind[:-1]][1]})
            for i, (_, kind) in enumerate(self.parameters)
            if kind[-1] == "*"
        ]
        self._first = self._pointers[0][0]
        self._stream, self._current = torch()._C._cuda_getCurrentRawStream, torch()._C._cuda_getDevice
        self._launch = launcher()
        self._layout = struct.Struct("@" + "".join(SCALARS.get(kind, "P") for _, kind in self.parameters))
        self._buffer = ctypes.create_string_buffer(self._layout.size)
        self._size = ctypes.c_size_t(self._layout.size)
        # CU_LAUNCH_PARAM_BUFFER_POINTER, its address, CU_LAUNCH_PARAM_BUFFER_SIZE, its address, end
        self._extra = (ctypes.c_void_p * 5)(1, ctypes.addressof(self._buffer), 2, ctypes.addressof(self._size), 0)
        self._config, self._configured = ctypes.create_string_buffer(_CONFIG.size), None
        self._addresses = [ctypes.c_void_p(ctypes.addressof(at)) for at in (self._config, self._extra)]
        self._functions = {}  # by device
        self._shared = {}

    def function(self, device: int):
        """The loaded function on a device."""
        if device not in self._functions:
            with torch().cuda.device(device):
                torch().cuda.current_stream()  # makes sure that torch's context exists and is current
                torch().cuda.synchronize()
                arch = "sm_{}{}".format(*capability(device))
                arch += "a" if arch == "sm_90" else ""  # with the instructions that only this one has
                module, function = ctypes.c_void_p(), ctypes.c_void_p()
                _driver_call("cuModuleLoadData", ctypes.byref(module), cubin(self.file, arch, self.options))
                _driver_call("cuModuleGetFunction", ctypes.byref(function), module, self.name.encode())
                self._functions[device] = function
        return self._functions[device]

    def __call__(self, grid, block, *args, shared: int = 0, overlap: bool = False):
        """Launch on the current stream of the tensors' device; nothing waits for it.

        Parameters
        ----------
        grid, block : tuple of three int
        *args : tensors and numbers, as declared
        shared : int
            Bytes of dynamic shared memory.
        overlap : bool
            Let the kernel begin before the one ahead of it on the stream has ended (compute capability 9.0, else
            ignored). It must then wait (griddepcontrol.wait) before it touches anything that one may write.

        Raises
        ------
        BadInput for an argument that the declaration does not take, BackendUnavailable for an error of the driver.
        """
        if len(args) != len(self.parameters):
            raise BadInput(f"{self.name} takes {[p for p, _ in self.parameters]}, got {len(args)} arguments")
        index, values = args[self._first].get_device(), list(args)
        for i, mask, dtypes in self._pointers:
            arg = args[i]
            values[i] = address = arg.data_ptr()
            if (
                address & mask
                or (dtypes and arg.dtype not in dtypes)
                or arg.get_device() != index
                or not arg.is_contiguous()
            ):
                self._refuse(args)
        if index < 0:
            self._refuse(args)
        function = self._functions.get(index) or self.function(index)
        if shared > 49152 and shared > self._shared.get(index, 0):
            with torch().cuda.device(index):  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                _driver_call("cuFuncSetAttribute", function, 8, shared)
            self._shared[index] = shared
        place = index, self._stream(index), grid, block, shared, overlap
        try:
            self._layout.pack_into(self._buffer, 0, *values)
            if place != self._configured:
                attributes = 1 if overlap and capability(index) >= (9, 0) else 0
                if attributes:
                    # CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: the same for all that overlap, since a
                    # multiprocessor must run empty before its memory is divided in another way
                    _driver_call("cuFuncSetAttribute", function, 9, 100)
                at = ctypes.addressof(_OVERLAP)
                _CONFIG.pack_into(self._config, 0, *grid, *block, shared, place[1], at, attributes)
                self._configured = place
        except struct.error as problem:
            raise BadInput(f"{self.name}{tuple(p for p, _ in self.parameters)}: {problem}") from None
        config, extra = self._addresses
        if self._current() == index:
            status = self._launch(config, function, None, extra)
        else:
            with torch().cuda.device(index):
                status = self._launch(config, function, None, extra)
        if status:
            _check(f"launch of {self.name}, grid {grid}, block {block}, {shared} bytes shared", status)

    def _refuse(self, args):
        first = self._first
        for i, mask, dtypes in self._pointers:
            arg, (name, kind) = args[i], self.parameters[i]
            if arg.device != args[first].device or not arg.is_cuda:
                other = f"{self.parameters[first][0]} on {args[first].device}"
                raise BadInput(f"{self.name}: {name} is on {arg.device}, {other}; expected one GPU")
            if (dtypes and arg.dtype not in dtypes) or arg.data_ptr() & mask or not arg.is_contiguous():
                raise BadInput(
                    f"{self.name}: {name} must be a contiguous tensor for {kind} on a boundary of {mask + 1} bytes, "
                    f"got {arg.dtype} {list(arg.shape)}, strides {arg.stride()}, at {arg.data_ptr():#x}"
                )


@functools.cache
def _load(file, name, options, defines) -> Kernel:
    torch()
    return Kernel(file, name, (*options, *(f"-D{key}={value}" for key, value in defines)), defines)


def load(file: str, name: str, options: tuple[str, ...] = (), **defines) -> Kernel:
    """Return the kernel `name` of a .cu file of this folder, compiled with `options` and the given defines.

    The same arguments give the same kernel. Raises BackendUnavailable without a GPU, BadInput for an unknown name.
    """
    return _load(file, name, tuple(options), tuple(sorted(defines.items())))
