"""How the kernels are compiled: once, on first use, and kept on disk; and how they are spread over threads.

- **Nothing is compiled on import.** The first call of a kernel compiles it, a second or so, and says so on stderr.
- **The compiled code is kept** in Numba's cache folder (`NUMBA_CACHE_DIR`, `__pycache__` beside the source, or the
  user's cache folder). Where none can be written it is compiled anew in every process. Numba itself notices changes of
  the kernel's own file only; here the stamp covers all files of this package, since kernels are built of several.
- **Threads** are Numba's number: `numba.set_num_threads`, `NUMBA_NUM_THREADS`. Each piece of work writes its own part
  of the output and nothing else, so the result does not depend on the number.
"""

import functools
import hashlib
import math
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pickle import UnpicklingError
from types import FunctionType

import numba
import numpy as np
from numba.core import event
from numba.core.caching import FunctionCache

helper = numba.njit(nogil=True)  # a function that kernels are made of
inlined = numba.njit(nogil=True, forceinline=True)  # one so small that a call would cost more than what it does


@functools.cache
def _source_stamp() -> str:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


class _Cache(FunctionCache):
    """Numba's cache, with a stamp over the whole package, and without complaint when the disk refuses."""

    def __init__(self, function):
        super().__init__(function)
        self._cache_file._source_stamp = _source_stamp()

    def load_overload(self, sig, target_context):
        try:
            return super().load_overload(sig, target_context)
        except (OSError, EOFError, UnpicklingError):
            return None

    def save_overload(self, sig, data):
        try:
            super().save_overload(sig, data)
        except OSError:
            self.disable()


def specialized(template, name: str, **names):
    """Copy a kernel's function with some of the names that it uses bound to other things: one loop for many formats.

    A closure would do, but Numba could not keep its code on disk: a helper is a new object in every process.
    """
    copy = FunctionType(template.__code__, {**template.__globals__, **names}, name)
    copy.__qualname__ = name
    return kernel()(copy)


_KERNELS = set()


class _Announcer(event.Listener):
    def on_start(self, event):
        if event.data["dispatcher"] in _KERNELS:
            name = event.data["dispatcher"].py_func.__name__
            print(f"refquant: compiling {name} for this processor (first use)", file=sys.stderr, flush=True)

    def on_end(self, event):
        pass


event.register("numba:compile", _Announcer())


def kernel(**options):
    """Compile the decorated function on its first call; without the interpreter's lock; cached on disk."""

    def make(function):
        compiled = numba.njit(nogil=True, **options)(function)
        try:
            compiled._cache = _Cache(function)
        except (RuntimeError, OSError):  # no folder that can be written
            pass
        _KERNELS.add(compiled)
        return compiled

    return make


PRODUCT = 1 << 20  # weights of a product that are worth waking another thread: 25 to 100 microseconds


def aligned_empty(shape: tuple, dtype=np.float32) -> np.ndarray:
    """An array that begins at a multiple of 64 bytes: a vector that crosses a cache line is read twice."""
    bytes_ = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(bytes_ + 64, np.uint8)
    start = -room.__array_interface__["data"][0] % 64
    return room[start : start + bytes_].view(dtype).reshape(shape)


def aligned(x: np.ndarray) -> np.ndarray:
    """Copy to float32 at a multiple of 64 bytes."""
    copy = aligned_empty(x.shape)
    copy[:] = x
    return copy


_POOLS = {}  # threads - 1 -> executor, made when first needed


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_POOLS.clear)  # the threads stayed behind


def in_pieces(run, count: int, least: int) -> None:
    """Call run(first, last) for consecutive pieces of range(count), no smaller than `least`, on Numba's threads."""
    threads = min(numba.get_num_threads(), -(-count // least))
    if threads <= 1:
        if count:
            run(0, count)
        return
    size = max(least, -(-count // (8 * threads)))  # several pieces a thread: one that is held up delays little
    starts, lock = iter(range(0, count, size)), threading.Lock()

    def work():
        while True:
            with lock:
                first = next(starts, None)
            if first is None:
                return
            run(first, min(first + size, count))

    if threads - 1 not in _POOLS:
        _POOLS[threads - 1] = ThreadPoolExecutor(threads - 1, thread_name_prefix="refquant")
    others = [_POOLS[threads - 1].submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        if not other.cancel():  # one that has not begun is not waited for: nothing is left to do
            other.result()
