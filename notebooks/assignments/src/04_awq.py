# %% [markdown]
# # Assignment 4: AWQ
#
# 20 points, about 90 minutes. Before it: assignment 1, notebook 04 (AWQ).
#
# Some input **channels** (columns of W) carry much larger activations than the others, and an error in their weights
# counts more. AWQ multiplies those columns by a factor before rounding and divides their activations by it:
# $x W^\top = (x / s)(W s)^\top$. Rounding then hits them less.
#
# `x [m, k]` are inputs of m tokens, `W [n, k]` the weights, outputs by inputs. Everything is float64. Write only in the
# cells that say `YOUR CODE HERE`. The cell after each tries your function; when your work is graded it runs with other
# data, and each case that is right counts.

# %% nbgrader={"grade": false, "grade_id": "setup", "locked": true, "schema_version": 3, "solution": false, "task": false}
import numpy as np

from refquant import classroom

ALPHAS = np.arange(20) / 20


def on_grid(W, bits, size):
    """W after rounding to `bits` bits in groups of `size` columns: assignment 1, there and back."""
    parts = W.reshape(len(W), -1, size)
    low, high = np.minimum(parts.min(axis=2, keepdims=True), 0), np.maximum(parts.max(axis=2, keepdims=True), 0)
    scale = np.where(high > low, high - low, 1) / (2**bits - 1)
    zero = np.rint(-low / scale)
    return ((np.clip(np.rint(parts / scale) + zero, 0, 2**bits - 1) - zero) * scale).reshape(W.shape)


# %% [markdown]
# ## 1. Salient channels
#
# Return the `count` channels with the largest mean magnitude of x, in ascending order.


# %% nbgrader={"grade": false, "grade_id": "salient", "locked": false, "schema_version": 3, "solution": true, "task": false}
def salient(x, count):
    """Indices of the loudest channels, ascending."""
    ### BEGIN SOLUTION
    return np.sort(np.argsort(-np.abs(x).mean(axis=0))[:count])
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_salient", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# 3 points. Here the visible cases are tried; graded are others.
classroom.check(salient, "awq.salient")
### BEGIN HIDDEN TESTS
classroom.grade(salient, "awq.salient")
### END HIDDEN TESTS

# %% [markdown]
# ## 2. The scales
#
# From the mean magnitude of each channel and one number `alpha`: $r = \max(mean^{alpha},\ 10^{-4})$ and
# $s = r / \sqrt{\max r \cdot \min r}$. With alpha = 0 every s is 1, which is plain rounding.


# %% nbgrader={"grade": false, "grade_id": "scales", "locked": false, "schema_version": 3, "solution": true, "task": false}
def scales(mean, alpha):
    """s [k], positive, from mean |x| [k]."""
    ### BEGIN SOLUTION
    r = np.maximum(mean**alpha, 1e-4)
    return r / np.sqrt(r.max() * r.min())
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_scales", "locked": true, "points": 4, "schema_version": 3, "solution": false, "task": false}
# 4 points. Here the visible cases are tried; graded are others.
classroom.check(scales, "awq.scales")
### BEGIN HIDDEN TESTS
classroom.grade(scales, "awq.scales")
### END HIDDEN TESTS

# %% [markdown]
# ## 3. The search
#
# For each alpha of `ALPHAS`: scale W, round it with `on_grid(..., bits, size)`, scale it back, and take the mean squared
# difference of the layer's **output** $x W^\top$. Return the alpha with the least error, and the array of all errors. The
# score is the **error against RTN**, which is alpha = 0.


# %% nbgrader={"grade": false, "grade_id": "search", "locked": false, "schema_version": 3, "solution": true, "task": false}
def search(W, x, bits, size):
    """(best alpha, errors [20])."""
    ### BEGIN SOLUTION
    mean = np.abs(x).mean(axis=0)
    errors = []
    for alpha in ALPHAS:
        s = scales(mean, alpha)
        errors.append(np.mean((x @ (on_grid(W * s, bits, size) / s - W).T) ** 2))
    return ALPHAS[np.argmin(errors)], np.array(errors)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_search", "locked": true, "points": 5, "schema_version": 3, "solution": false, "task": false}
# 5 points. Here the visible cases are tried; graded are others.
classroom.check(search, "awq.search")
### BEGIN HIDDEN TESTS
classroom.grade(search, "awq.search")
### END HIDDEN TESTS

# %% [markdown]
# ## 4. Absorb the scales
#
# Dividing x by s at run time would cost time. But x comes from a norm, which multiplies each channel by a weight of its
# own: `x = normalised * norm`. Return the new weights of the norm and of the layer, so that the layer's output is the same
# and the layer holds W s.


# %% nbgrader={"grade": false, "grade_id": "absorb", "locked": false, "schema_version": 3, "solution": true, "task": false}
def absorb(norm, W, s):
    """(new norm [k], new W [n, k])."""
    ### BEGIN SOLUTION
    return norm / s, W * s
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_absorb", "locked": true, "points": 4, "schema_version": 3, "solution": false, "task": false}
# 4 points. Here the visible cases are tried; graded are others.
classroom.check(absorb, "awq.absorb")
### BEGIN HIDDEN TESTS
classroom.grade(absorb, "awq.absorb")
### END HIDDEN TESTS

# %% [markdown]
# ## 5. Prove that nothing changed
#
# Before rounding, the output must be the same but for the last bits of the arithmetic. Return the largest magnitude of the
# change of the output, divided by the largest magnitude of the output before. `x [m, k]` is what goes into the norm's
# multiplication (normalised already), so the layer's output is `(x * norm) @ W.T`.


# %% nbgrader={"grade": false, "grade_id": "largest_change", "locked": false, "schema_version": 3, "solution": true, "task": false}
def largest_change(norm, W, new_norm, new_W, x):
    """Largest change of the output, relative to the largest output."""
    ### BEGIN SOLUTION
    before, after = (x * norm) @ W.T, (x * new_norm) @ new_W.T
    return np.abs(after - before).max() / np.abs(before).max()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_largest_change", "locked": true, "points": 4, "schema_version": 3, "solution": false, "task": false}
# 4 points. Here the visible cases are tried; graded are others.
classroom.check(largest_change, "awq.largest_change")
### BEGIN HIDDEN TESTS
classroom.grade(largest_change, "awq.largest_change")
### END HIDDEN TESTS

# %% [markdown]
# ## To think about (no points)
#
# - Why does the error rise again for large alpha?
# - No weight is kept in higher precision. Where did the precision of the loud channels come from?
