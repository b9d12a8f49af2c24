"""The operations, in one registry: the NumPy reference, the traffic it cannot avoid, and the fast paths by backend.

Three operations are public: `quantize`, `dequantize`, `matmul`. For every family of formats they are composed from four
smaller ones, which the two halves of refquant register without knowing each other::

    methods   "search"   w, format, importance  ->  fields      the numbers: codes, scales, zero-points
    formats   "pack"     fields, format         ->  arrays      the numbers as bytes
    formats   "unpack"   arrays, format, shape  ->  fields
    formats   "decode"   fields, format         ->  w

A family whose product is not that of x with the decoded weights, because it rounds x as well (LLM.int8), registers its
own: methods, "matmul", x, q -> y.

A fast path may replace any of the three public operations as a whole for one family and one backend. A method with
calibration data that is to have fast paths of its own (`methods.gptq`) is added with `register`.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from refquant.errors import BackendUnavailable, BadInput, UnknownName
from refquant.grids import check_weights
from refquant.quantized import Format, Quantized, find_format

BACKENDS = {"numpy": None, "numba": "refquant_kernels.cpu", "cuda": "refquant_kernels.cuda"}


@dataclass(frozen=True)
class Traffic:
    """The least that one call can move and must compute. Bytes; a multiply and an add are two operations."""

    read: int
    written: int
    flops: int

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return self.read + self.written


@dataclass
class Op:
    """One operation on one family of formats: how to compute it, what it must move, and who computes it fast."""

    name: str
    reference: Callable
    traffic: Callable[..., Traffic]
    fast: dict[str, Callable] = field(default_factory=dict)
    prepare: dict[str, Callable] = field(default_factory=dict)  # of matmul, by backend: q -> (x -> y)

    def __call__(self, *args, backend: str = "numpy", **options):
        """Compute on `backend`; raise `BackendUnavailable` when this operation has no path there."""
        if backend == "numpy":
            return self.reference(*args, **options)
        load_backend(backend)
        if backend not in self.fast:
            raise BackendUnavailable(f"{self.name} has no {backend!r} path; it has {['numpy', *self.fast]}")
        return self.fast[backend](*args, **options)


_PARTS: dict[tuple[str, str], Callable] = {}
_OPS: dict[tuple[str, str], Op] = {}


def part(kind: str, *families: str):
    """Register the decorated function as `search`, `pack`, `unpack`, `decode` or `matmul` of these families."""

    def register(function):
        for family in families:
            _PARTS[kind, family] = function
        return function

    return register


def fast_path(name: str, *families: str, backend: str):
    """Register the decorated function as the `backend` path of an operation; same arguments as the reference."""

    def register(function):
        for family in families:
            find_op(name, family).fast[backend] = function
        return function

    return register


def load_backend(backend: str) -> None:
    """Import the module whose fast paths register themselves; raise `BackendUnavailable` with the reason."""
    if backend not in BACKENDS:
        raise BackendUnavailable(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    if BACKENDS[backend]:
        try:
            importlib.import_module(BACKENDS[backend])
        except ImportError as problem:
            raise BackendUnavailable(f"backend {backend!r}: {problem}") from problem


def register(name: str, reference: Callable, traffic: Callable[..., Traffic]) -> None:
    """Add an operation beside the three public ones: a method that can have fast paths, as `methods.gptq`."""
    _PUBLIC[name] = (reference, traffic)


def find_op(name: str, family: str) -> Op:
    """Return an operation (`quantize`, `dequantize`, `matmul`, or one that was registered) of a family of formats."""
    if (name, family) not in _OPS:
        if name not in _PUBLIC:
            raise UnknownName("operation", name, _PUBLIC)
        reference, traffic = _PUBLIC[name]
        _OPS[name, family] = Op(f"{name} of {family}", reference, traffic)
    return _OPS[name, family]


def _part(kind: str, item: Format) -> Callable:
    try:
        return _PARTS[kind, item.family]
    except KeyError:
        raise BackendUnavailable(f"nothing can {kind} the format {item.name}") from None


# ---- the public operations


def quantize(w: np.ndarray, format: str, importance=None, backend: str = "numpy") -> Quantized:  # noqa: A002
    """Quantize a matrix with the format's own rule: round to nearest, or ggml's search for its block formats.

    Parameters
    ----------
    w : float array [out, in]
    format : str
        A storage format; `refquant.formats()` lists them.
    importance : float32 [in], optional
        Weight of each column's squared error (an importance matrix), for the formats whose search uses one.
    backend : str
        "numpy" (the definition), "numba" or "cuda".

    Raises
    ------
    UnknownName, BadInput, BackendUnavailable
    """
    w = check_weights(w)
    if importance is not None:
        importance = np.asarray(importance, np.float32)
        if importance.shape != w.shape[1:]:
            raise BadInput(f"importance: expected one value per column, {w.shape[1:]}, got {importance.shape}")
    item = find_format(format)
    item.layout(*w.shape)  # refuses a width that the format cannot hold, before any work
    return find_op("quantize", item.family)(w, format, importance=importance, backend=backend)


def dequantize(q: Quantized, backend: str = "numpy") -> np.ndarray:
    """Return the weights, float32 [out, in], that `q` stands for."""
    return find_op("dequantize", find_format(q.format).family)(q, backend=backend)


def matmul(x: np.ndarray, q: Quantized, backend: str = "numpy") -> np.ndarray:
    """Multiply activations with quantized weights: x [..., in] -> float32 [..., out]."""
    if x.shape[-1:] != q.shape[1:]:
        raise BadInput(f"matmul: x must end in {q.shape[1]} inputs for weights {q.shape}, got {x.shape}")
    return find_op("matmul", find_format(q.format).family)(x, q, backend=backend)


def multiplier(q: Quantized, backend: str = "numpy") -> Callable[[np.ndarray], np.ndarray]:
    """Return `matmul` with these weights as a function of x, for a layer: what depends on q alone is done once.

    The arrays of q must not change afterwards. The function checks nothing: x is floating point, [..., in].
    """
    op = find_op("matmul", find_format(q.format).family)
    if backend != "numpy":
        load_backend(backend)
    return op.prepare[backend](q) if backend in op.prepare else partial(op, q=q, backend=backend)


def weight_only(format: str) -> bool:  # noqa: A002
    """Whether `matmul` multiplies x with the decoded weights; False where the format has a product of its own."""
    return ("matmul", find_format(format).family) not in _PARTS


def pack(fields: dict, format: str, shape: tuple[int, int]) -> Quantized:  # noqa: A002
    """Lay out a method's numbers (codes, scales, ...) as the arrays of a format."""
    item = find_format(format)
    return Quantized(format, shape, _part("pack", item)(fields, item.name))


def unpack(q: Quantized) -> dict:
    """Return the numbers (codes, scales, ...) that the arrays of `q` hold."""
    item = find_format(q.format)
    return _part("unpack", item)(q.arrays, item.name, q.shape)


# ---- their references and traffic


def _quantize(w, name, importance=None):
    item = find_format(name)
    return pack(_part("search", item)(w, name, importance=importance), name, w.shape)


def _dequantize(q):
    return _part("decode", find_format(q.format))(unpack(q), q.format)


def _matmul(x, q):
    own = _PARTS.get(("matmul", find_format(q.format).family))
    if own:
        return own(x, q)
    return np.asarray(x, np.float32) @ _dequantize(q).T


def _quantize_traffic(shape, name):
    n, k = shape
    return Traffic(read=4 * n * k, written=find_format(name).nbytes(shape), flops=0)


def _dequantize_traffic(shape, name):
    n, k = shape
    return Traffic(read=find_format(name).nbytes(shape), written=4 * n * k, flops=2 * n * k)


def _matmul_traffic(shape, name, m=1, activation_bytes=4):
    n, k = shape
    weights = find_format(name).nbytes(shape)
    return Traffic(read=weights + activation_bytes * m * k, written=activation_bytes * m * n, flops=2 * m * n * k)


_PUBLIC = {
    "quantize": (_quantize, _quantize_traffic),
    "dequantize": (_dequantize, _dequantize_traffic),
    "matmul": (_matmul, _matmul_traffic),
}


def traffic(name: str, shape: tuple[int, int], format: str, **sizes) -> Traffic:  # noqa: A002
    """The least bytes and operations of `name` on a matrix [out, in] in `format`; matmul takes `m` tokens."""
    return find_op(name, find_format(format).family).traffic(shape, format, **sizes)
