# %% [markdown]
# # Assignment 3: GPTQ
#
# 20 points, about 2 hours. Before it: assignment 1, notebook 03 (GPTQ).
#
# Round to nearest treats every weight alone. GPTQ rounds a layer one column at a time, and lets the columns that are not
# rounded yet make up for the error, so that the layer's **output** changes least on some **calibration inputs** `x`.
#
# Letters: `W [n, k]` are the weights, outputs by inputs; `x [m, k]` the inputs of m tokens; `H [k, k]` says how the squared
# output error grows with a change of the weights. Everything is float64. Write only in the cells that say `YOUR CODE HERE`.
# The cell after each tries your function; when your work is graded it runs with other data, and each case counts.

# %% nbgrader={"grade": false, "grade_id": "setup", "locked": true, "schema_version": 3, "solution": false, "task": false}
import numpy as np

from refquant import classroom


def rounded(w, scale, zero, bits):
    """Weights [n] or [n, k] on the grid of their row (scale [n], zero [n]): what assignment 1 does, there and back."""
    shape = (-1,) + (1,) * (w.ndim - 1)
    scale, zero = scale.reshape(shape), zero.reshape(shape)
    return (np.clip(np.rint(w / scale) + zero, 0, 2**bits - 1) - zero) * scale


# %% [markdown]
# ## 1. The Hessian
#
# The squared error of one output, as a mean over the tokens, has the second derivative
# $H = \frac{2}{m} \sum_t x_t x_t^\top$, the same for every row of W.


# %% nbgrader={"grade": false, "grade_id": "hessian", "locked": false, "schema_version": 3, "solution": true, "task": false}
def hessian(x):
    """H, float64 [k, k], of inputs x [m, k]."""
    ### BEGIN SOLUTION
    return 2 / len(x) * x.T @ x
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_hessian", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# 2 points. Here the visible cases are tried; graded are others.
classroom.check(hessian, "gptq.hessian")
### BEGIN HIDDEN TESTS
classroom.grade(hessian, "gptq.hessian")
### END HIDDEN TESTS

# %% [markdown]
# ## 2. Dead columns and damping
#
# An input that is always 0 makes its row and column of H zero, and H cannot be inverted. Nothing is known about such a
# **dead column**, and nothing depends on it: set its weights to 0 and its $H_{jj}$ to 1. After that add `damp` times the
# mean of the diagonal of H to the diagonal (**damping**), so that H is far from singular.
#
# Return new arrays; do not change the arguments.


# %% nbgrader={"grade": false, "grade_id": "prepare", "locked": false, "schema_version": 3, "solution": true, "task": false}
def prepare(W, H, damp):
    """(W, H) with dead columns out of the way and the diagonal damped."""
    ### BEGIN SOLUTION
    W, H = W.copy(), H.copy()
    dead = np.diag(H) == 0
    W[:, dead] = 0
    H[dead, dead] = 1
    return W, H + damp * np.diag(H).mean() * np.eye(len(H))
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_prepare", "locked": true, "points": 4, "schema_version": 3, "solution": false, "task": false}
# 4 points. Here the visible cases are tried; graded are others.
classroom.check(prepare, "gptq.prepare")
### BEGIN HIDDEN TESTS
classroom.grade(prepare, "gptq.prepare")
### END HIDDEN TESTS

# %% [markdown]
# ## 3. The factor
#
# All that the loop needs of the inverse is its Cholesky factor: the upper triangular U with $U^\top U = H^{-1}$.
# `np.linalg.cholesky(A)` gives the lower L with $L L^\top = A$.


# %% nbgrader={"grade": false, "grade_id": "factor", "locked": false, "schema_version": 3, "solution": true, "task": false}
def factor(H):
    """U, upper triangular, with U.T @ U = inverse of H."""
    ### BEGIN SOLUTION
    return np.linalg.cholesky(np.linalg.inv(H)).T
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_factor", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# 2 points. Here the visible cases are tried; graded are others.
classroom.check(factor, "gptq.factor")
### BEGIN HIDDEN TESTS
classroom.grade(factor, "gptq.factor")
### END HIDDEN TESTS

# %% [markdown]
# ## 4. One column
#
# Column j becomes `q [n]`. With $err = (w_j - q) / U_{jj}$, each later column $l > j$ loses $err \cdot U_{jl}$. Return the
# new W: column j is q, the later columns are moved, the earlier ones stay.


# %% nbgrader={"grade": false, "grade_id": "compensate", "locked": false, "schema_version": 3, "solution": true, "task": false}
def compensate(W, q, j, U):
    """W [n, k] after column j became q [n]."""
    ### BEGIN SOLUTION
    W = W.copy()
    err = (W[:, j] - q) / U[j, j]
    W[:, j] = q
    W[:, j + 1 :] -= np.outer(err, U[j, j + 1 :])
    return W
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_compensate", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# 3 points. Here the visible cases are tried; graded are others.
classroom.check(compensate, "gptq.compensate")
### BEGIN HIDDEN TESTS
classroom.grade(compensate, "gptq.compensate")
### END HIDDEN TESTS

# %% [markdown]
# ## 5. A block
#
# Updating all later columns after each column moves the whole matrix through memory k times. GPTQ works on a block of
# columns, `first` to `last - 1`: inside the block each column is updated at once, and the columns after the block get all
# the block's errors in one product at its end. The result is the same.
#
# Return W after one block: its columns rounded, the columns after it updated.


# %% nbgrader={"grade": false, "grade_id": "block", "locked": false, "schema_version": 3, "solution": true, "task": false}
def block(W, first, last, U, scale, zero, bits):
    """W [n, k] after columns first..last-1 were quantized on the rows' grids (scale [n], zero [n])."""
    ### BEGIN SOLUTION
    W = W.copy()
    err = np.zeros((len(W), last - first))
    for j in range(first, last):
        q = rounded(W[:, j], scale, zero, bits)
        err[:, j - first] = (W[:, j] - q) / U[j, j]
        W[:, j] = q
        W[:, j + 1 : last] -= np.outer(err[:, j - first], U[j, j + 1 : last])
    W[:, last:] -= err @ U[first:last, last:]
    return W
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_block", "locked": true, "points": 4, "schema_version": 3, "solution": false, "task": false}
# 4 points. Here the visible cases are tried; graded are others.
classroom.check(block, "gptq.block")
### BEGIN HIDDEN TESTS
classroom.grade(block, "gptq.block")
### END HIDDEN TESTS

# %% [markdown]
# ## 6. GPTQ
#
# Put it together: prepare, factor, then block after block of `size` columns (the last may be shorter). The score is the
# layer's **output error against RTN**: 1 is no better than rounding to nearest.


# %% nbgrader={"grade": false, "grade_id": "quantize", "locked": false, "schema_version": 3, "solution": true, "task": false}
def quantize(W, H, scale, zero, bits, damp, size):
    """Quantized weights [n, k]."""
    ### BEGIN SOLUTION
    W, H = prepare(W, H, damp)
    U = factor(H)
    for first in range(0, W.shape[1], size):
        W = block(W, first, min(first + size, W.shape[1]), U, scale, zero, bits)
    return W
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_quantize", "locked": true, "points": 5, "schema_version": 3, "solution": false, "task": false}
# 5 points. Here the visible cases are tried; graded are others.
classroom.check(quantize, "gptq.quantize")
### BEGIN HIDDEN TESTS
classroom.grade(quantize, "gptq.quantize")
### END HIDDEN TESTS

# %% [markdown]
# ## To think about (no points)
#
# - Why may all rows share one order of the columns, and one U?
# - The weights' own error is larger than with round to nearest. Why is the layer better all the same?
