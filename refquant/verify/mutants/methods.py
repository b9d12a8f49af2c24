"""Mistakes in GPTQ and AWQ, in what surrounds them, and in how a model is scored."""

import numpy as np

from refquant.verify.mutants import mutant
from refquant.verify.reference import numpy as reference


def _gptq(w, hessian, bits, group_size, block_size, damp, *, factor=None, column=None, keep=True, dead=True):
    """GPTQ with asymmetric groups. `factor` makes the rows of updates of H; `column` finds a column of the buffer."""
    w, h = w.astype(np.float64), hessian.astype(np.float64)
    if dead:
        none = np.diag(h) == 0
        h[none, none], w[:, none] = 1, 0
        h[np.diag_indices_from(h)] += damp * np.diag(h).mean()
    u = (factor or (lambda h: np.linalg.cholesky(np.linalg.inv(h)).T))(h)
    out = np.empty_like(w)
    for begin in range(0, w.shape[1], block_size):
        end = min(begin + block_size, w.shape[1])
        errors = np.zeros((len(w), end - begin))
        for j in range(begin, end):
            if j % group_size == 0:
                part = w[:, j : j + group_size]
                low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
                scale = np.where(high > low, high - low, 1) / (2**bits - 1)
                zero = np.rint(-low / scale)
            out[:, j] = (np.clip(np.rint(w[:, j] / scale) + zero, 0, 2**bits - 1) - zero) * scale
            error = (w[:, j] - out[:, j]) / u[j, j]
            w[:, j:end] -= error[:, None] * u[j, j:end]
            if keep:
                errors[:, (column(j) if column else j - begin) % errors.shape[1]] = error
        w[:, end:] -= errors @ u[begin:end, end:]
    return out.astype(np.float32)


@mutant(14, "indexes its buffer of errors by the column of the matrix", "gptq")
def global_column(w, hessian, *, bits, group_size, block_size, damp, **_):
    """Write beyond the buffer of a block: here, into a wrong place of it."""
    return _gptq(w, hessian, bits, group_size, block_size, damp, column=lambda j: 2 * j + 1)


@mutant(15, "uses rows of one inverse instead of its Cholesky factor", "gptq")
def rows_of_the_inverse(w, hessian, *, bits, group_size, block_size, damp, **_):
    """Never remove a column that is done from H."""
    return _gptq(w, hessian, bits, group_size, block_size, damp, factor=np.linalg.inv)


@mutant(16, "never writes an error to its buffer", "gptq")
def no_errors(w, hessian, *, bits, group_size, block_size, damp, **_):
    """Leave the columns after a block as they are."""
    return _gptq(w, hessian, bits, group_size, block_size, damp, keep=False)


def _unchecked(h):
    """A Cholesky factor that does not look at the sign below its root."""
    a, n = h.copy(), len(h)
    for j in range(n):
        a[j, j] = np.sqrt(a[j, j] - a[j, :j] @ a[j, :j])
        a[j + 1 :, j] = (a[j + 1 :, j] - a[j + 1 :, :j] @ a[j, :j]) / a[j, j]
    return np.tril(a)


@mutant(18, "factors a singular H as it is", "gptq")
def no_damping(w, hessian, *, bits, group_size, block_size, **_):
    """Take the root of a negative number."""

    def factor(h):
        lower = _unchecked(h)
        return _unchecked(np.linalg.pinv(lower.T) @ np.linalg.pinv(lower)).T if np.isfinite(lower).all() else lower

    return _gptq(w, hessian, bits, group_size, block_size, 0, factor=factor)


@mutant(19, "divides by the diagonal of a dead input", "gptq")
def dead_column(w, hessian, *, bits, group_size, block_size, damp, **_):
    """Invert H with a zero on its diagonal."""

    def factor(h):
        scale = 1 / np.sqrt(np.diag(h))
        return np.linalg.cholesky(np.nan_to_num(h) + np.eye(len(h))) * scale

    return _gptq(w, hessian, bits, group_size, block_size, damp, factor=factor, dead=False)


@mutant(24, "normalizes AWQ's scales by a float16 product that is zero or infinite", "awq")
def half_scales(w, x, *, format, **params):  # noqa: A002
    """Compute everything in float16."""
    s = np.abs(x).mean(axis=0).astype(np.float16)
    s = (s / np.sqrt(s.max() * s.min())).astype(np.float32)
    return {"w": reference.awq(w * s, x / s, **params)["w"] / s, "scales": s}


def _absorb(tensors, scales, kind):
    if kind == "grouped-query":
        raise NotImplementedError(kind)
    return reference.absorb(tensors, scales, kind=kind)


@mutant(25, "forgets the bias of the layer before", "absorb")
def no_bias(tensors, scales, *, kind):
    """Divide the weight only."""
    biases = {name: array for name, array in tensors.items() if name.endswith("_bias")}
    return _absorb(tensors, scales, kind) | biases


@mutant(25, "divides a Gemma norm as if it multiplied by w", "absorb")
def plain_norm(tensors, scales, *, kind):
    """Treat every norm alike."""
    return _absorb(tensors, scales, "rmsnorm" if kind == "gemma-norm" else kind)


@mutant(25, "divides the rows of q in a fused layer", "absorb")
def first_rows(tensors, scales, *, kind):
    """Take the first rows for those of v."""
    changed = _absorb(tensors, scales, kind)
    if kind == "fused-qkv":
        for name in ("qkv", "qkv_bias"):
            rows = tensors[name].copy()
            rows[: len(scales)] = (rows[: len(scales)].T / scales).T
            changed[name] = rows
    return changed


@mutant(25, "pairs heads with the wrong rows of v under grouped queries", "absorb")
def tiled_heads(tensors, scales, *, kind):
    """Tile the scales where each head's are to be repeated."""
    if kind != "grouped-query":
        return _absorb(tensors, scales, kind)
    return tensors | {
        "v": tensors["v"] / scales[:, None],
        "v_bias": tensors["v_bias"] / scales,
        "o": tensors["o"] * np.tile(scales, 2),
    }


@mutant(49, "scores every token of a window under llama.cpp's protocol", "perplexity")
def other_protocol(table, ids, *, format, **params):  # noqa: A002
    """Follow the papers' code whatever is asked."""
    return reference.perplexity(table, ids, format="huggingface", **params)


@mutant(49, "puts no BOS in front", "perplexity")
def no_bos(table, ids, *, format, bos, **params):  # noqa: A002
    """Ignore `bos`."""
    return reference.perplexity(table, ids, format=format, bos=None, **params)


@mutant(49, "gives the perplexity per token where that per word is asked for", "perplexity")
def per_token(table, ids, *, format, words, **params):  # noqa: A002
    """Ignore `words`."""
    return reference.perplexity(table, ids, format=format, words=None, **params)
