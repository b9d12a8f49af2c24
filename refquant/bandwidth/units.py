"""Sizes as people write them, and the checks that every function here makes. Bytes, seconds, bytes per second: SI.

GB is 10^9 bytes and GiB is 2^30, always. Makers of memory chips print "24 GB" on what holds 24 GiB; where this package
keeps such a size (`devices`), it keeps it in bytes, so that nothing has to guess.
"""

import math
import re

from refquant.errors import BadInput

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
GIB = 2**30


def parse_bytes(text: str | int) -> int:
    """Return a size in bytes from "24GB" (10^9), "24 GiB" (2^30), "512 MiB", or a number of bytes."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", str(text))
    if not found or (found[2].upper() or "B") not in UNITS:
        raise BadInput(f"size {text!r}: expected a number and a unit, such as 24GB (10^9 bytes) or 24GiB (2^30 bytes)")
    size = float(found[1]) * UNITS[found[2].upper() or "B"]
    return int(positive("size", size))


def positive(name: str, value: float) -> float:
    """Return `value`; raise `BadInput` unless it is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise BadInput(f"{name} must be a finite number above 0, got {value!r}")
    return value


def whole(name: str, value: int, least: int = 1) -> int:
    """Return `value`; raise `BadInput` unless it is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadInput(f"{name} must be a whole number of at least {least}, got {value!r}")
    return value


def show_bytes(size: float) -> str:
    """A size for people, in SI units with four digits: "42.51 GB", "98.36 MB"."""
    for unit in ("TB", "GB", "MB", "KB"):
        if abs(size) >= UNITS[unit]:
            return f"{size / UNITS[unit]:.4g} {unit}"
    return f"{size:.0f} B"
