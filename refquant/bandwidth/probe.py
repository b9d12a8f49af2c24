"""What this machine does, measured in about two seconds: read bandwidth with all cores, and float32 arithmetic.

Bandwidth: every core takes the maximum of its own stretch of a buffer larger than any cache, as 64-bit integers, which
NumPy does with vector instructions and without holding the interpreter's lock. Maximum, because a sum waits for each
addition before it can start the next; the best of several passes, because a pass can only be too slow.
Arithmetic: a square float32 matrix product, which NumPy hands to its BLAS.

Leaves out: writes; the GPU; memory of other sockets than the one that the threads run on.
"""

import functools
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from refquant.bandwidth.devices import THIS, Device

BUFFER = 512 * 2**20  # bytes; more than the largest last-level caches in use


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_bandwidth(seconds: float = 1.0, buffer: int = BUFFER) -> float:
    """Bytes per second that all cores together read from memory, best pass within `seconds`."""
    threads = cores()
    parts = [np.ones(buffer // 8 // threads, np.int64) for _ in range(threads)]  # written, so that the pages exist
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        stop = time.perf_counter() + seconds
        while best == 0.0 or time.perf_counter() < stop:
            start = time.perf_counter()
            list(pool.map(np.max, parts))
            best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - start))
    return best


def float32_rate(seconds: float = 0.5, size: int = 768) -> float:
    """Operations per second (multiply and add are two) of a float32 matrix product, best pass within `seconds`."""
    a = np.ones((size, size), np.float32)
    best, stop = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < stop:
        start = time.perf_counter()
        a @ a
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def memory_bytes() -> int | None:
    """Bytes of main memory, where the system tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


@functools.cache
def this_machine() -> Device:
    """Measure this machine, once per process."""
    bandwidth, rate = read_bandwidth(), float32_rate()
    source = f"measured: {cores()} threads, NumPy {np.__version__}"
    return Device(THIS, f"this machine ({cores()} cores)", "cpu", bandwidth, memory_bytes(), source, {"fp32": rate})
