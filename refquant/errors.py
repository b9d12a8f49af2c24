"""The errors that refquant raises on purpose. Each message says what was expected, where, and what to do.

They all derive from :class:`RefquantError`, so that a program can catch the lot, and from the built-in exception that
fits, so that code which does not know refquant still reacts sensibly.
"""


class RefquantError(Exception):
    """Base of every error raised on purpose."""


class UnknownName(RefquantError, LookupError):
    """A format, grid, method, device or model name that does not exist; the message lists those that do."""

    def __init__(self, kind: str, name: object, known):
        super().__init__(f"unknown {kind} {name!r}; known: {', '.join(map(str, known))}")


class BadInput(RefquantError, ValueError):
    """An argument of the wrong shape, type or range, or weights that hold NaN or infinity."""


class BadFile(RefquantError, ValueError):
    """A file that is truncated, hostile, or not what it claims to be; the message names the place."""


class NotPositiveDefinite(RefquantError, ArithmeticError):
    """A Hessian whose Cholesky factorization fails even after its damping was raised."""


class BackendUnavailable(RefquantError, RuntimeError):
    """A fast path that this machine or this operation lacks; the message says what is missing."""


class Unavailable(RefquantError, RuntimeError):
    """Something that must be fetched or installed first: a model while offline, an optional library."""
