# %% [markdown]
# # Assignment 1: round to nearest
#
# 20 points, about 90 minutes. Before it: notebook 02 (rounding).
#
# A weight in 4 bits is one of 16 **codes**. A **scale** and a **zero-point** say which number a code stands for:
#
# $$ w \approx (\text{code} - \text{zero}) \cdot \text{scale} \qquad \text{code} = \mathrm{clip}(\mathrm{round}(w / \text{scale}) + \text{zero},\ 0,\ 2^{bits} - 1) $$
#
# You write the five functions of a quantizer that rounds each weight to its nearest code. Write only in the cells that
# say `YOUR CODE HERE`. The cell after each tries your function on some data and raises an error with the first wrong
# value and a hint. When your work is graded, the same cell runs with other data, and each case that is right counts.
# NumPy and Python's standard library are all you need; other imports are refused when your work is graded.

# %% nbgrader={"grade": false, "grade_id": "setup", "locked": true, "schema_version": 3, "solution": false, "task": false}
import numpy as np

from refquant import classroom

# %% [markdown]
# ## 1. Scale and zero-point of one group
#
# `w` is a group of weights that share a scale. The range from `low` to `high` is spread over all codes, and it always
# contains 0, so that a weight of 0 has a code of its own:
#
# - `low = min(w.min(), 0)`, `high = max(w.max(), 0)`;
# - the scale is the step between two neighbouring levels. How many steps lie between the lowest and the highest of
#   $2^{bits}$ levels?
# - the zero-point is the code of the weight 0, an integer: `round(-low / scale)`;
# - a group of zeros has no range: return scale 1 and zero-point 0.
#
# Return `(scale, zero)`.


# %% nbgrader={"grade": false, "grade_id": "scale_zero", "locked": false, "schema_version": 3, "solution": true, "task": false}
def scale_zero(w, bits):
    """Scale (float) and zero-point (int) of one group w, float32 [g]."""
    ### BEGIN SOLUTION
    low, high = min(w.min(), 0), max(w.max(), 0)
    if low == high:
        return 1.0, 0
    scale = (high - low) / (2**bits - 1)
    return scale, int(np.rint(-low / scale))
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_scale_zero", "locked": true, "points": 5, "schema_version": 3, "solution": false, "task": false}
# 5 points. Here the visible cases are tried; graded are others.
classroom.check(scale_zero, "rtn.scale_zero")
### BEGIN HIDDEN TESTS
classroom.grade(scale_zero, "rtn.scale_zero")
### END HIDDEN TESTS

# %% [markdown]
# ## 2. From weights to codes
#
# Round to the nearest integer, ties to the even one (`np.rint` does that), add the zero-point, and keep the code inside
# 0 to $2^{bits} - 1$. Return `uint8`.


# %% nbgrader={"grade": false, "grade_id": "encode", "locked": false, "schema_version": 3, "solution": true, "task": false}
def encode(w, scale, zero, bits):
    """Codes, uint8 of w's shape."""
    ### BEGIN SOLUTION
    return np.clip(np.rint(w / scale) + zero, 0, 2**bits - 1).astype(np.uint8)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_encode", "locked": true, "points": 4, "schema_version": 3, "solution": false, "task": false}
# 4 points. Here the visible cases are tried; graded are others.
classroom.check(encode, "rtn.encode")
### BEGIN HIDDEN TESTS
classroom.grade(encode, "rtn.encode")
### END HIDDEN TESTS

# %% [markdown]
# ## 3. And back
#
# `codes` is `uint8`. What is `np.uint8(3) - np.uint8(8)`?


# %% nbgrader={"grade": false, "grade_id": "decode", "locked": false, "schema_version": 3, "solution": true, "task": false}
def decode(codes, scale, zero):
    """Weights, float32 of the codes' shape."""
    ### BEGIN SOLUTION
    return (codes.astype(np.float32) - zero) * np.float32(scale)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_decode", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# 2 points. Here the visible cases are tried; graded are others.
classroom.check(decode, "rtn.decode")
### BEGIN HIDDEN TESTS
classroom.grade(decode, "rtn.decode")
### END HIDDEN TESTS

# %% [markdown]
# ## 4. Groups
#
# One large weight stretches the scale of everything that shares it. So a row is cut into groups of `size` neighbours,
# each with its own scale and zero-point. Where the row's length is no multiple of `size`, the last group is shorter.
#
# For `w` of shape `[n, k]` return `codes [n, k]`, `scales [n, G]` and `zeros [n, G]`, where G is the number of groups in
# a row. The score is in **bits per weight**: the codes, and each group's scale (16 bits) and zero-point, over the number
# of weights.


# %% nbgrader={"grade": false, "grade_id": "groups", "locked": false, "schema_version": 3, "solution": true, "task": false}
def groups(w, bits, size):
    """Quantize w, float32 [n, k]: codes uint8 [n, k], scales float32 [n, G], zeros uint8 [n, G]."""
    ### BEGIN SOLUTION
    n, k = w.shape
    starts = range(0, k, size)
    codes = np.empty((n, k), np.uint8)
    scales = np.empty((n, len(starts)), np.float32)
    zeros = np.empty((n, len(starts)), np.uint8)
    for i in range(n):
        for g, start in enumerate(starts):
            part = w[i, start : start + size]
            scales[i, g], zeros[i, g] = scale_zero(part, bits)
            codes[i, start : start + size] = encode(part, scales[i, g], zeros[i, g], bits)
    return codes, scales, zeros
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_groups", "locked": true, "points": 6, "schema_version": 3, "solution": false, "task": false}
# 6 points. Here the visible cases are tried; graded are others.
classroom.check(groups, "rtn.groups")
### BEGIN HIDDEN TESTS
classroom.grade(groups, "rtn.groups")
### END HIDDEN TESTS

# %% [markdown]
# ## 5. The symmetric grid
#
# Without a zero-point, codes are signed and 0 stands for 0. The largest magnitude, of either sign, gets the largest code,
# $2^{bits-1} - 1$ (7 for 4 bits; the code -8 stays unused). A group of zeros gets scale 1.
#
# Return `(codes, scale)`, the codes as `int8`.


# %% nbgrader={"grade": false, "grade_id": "symmetric", "locked": false, "schema_version": 3, "solution": true, "task": false}
def symmetric(w, bits):
    """Codes int8 [g] and the scale of one group w, float32 [g]."""
    ### BEGIN SOLUTION
    top = 2 ** (bits - 1) - 1
    scale = np.abs(w).max() / top or 1.0
    return np.clip(np.rint(w / scale), -top, top).astype(np.int8), scale
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_symmetric", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# 3 points. Here the visible cases are tried; graded are others.
classroom.check(symmetric, "rtn.symmetric")
### BEGIN HIDDEN TESTS
classroom.grade(symmetric, "rtn.symmetric")
### END HIDDEN TESTS

# %% [markdown]
# ## To think about (no points)
#
# - Which of your functions would change for 3 bits? Which for a scale that is stored in float16?
# - Halve the group size: what happens to the bits per weight, and what to the error?
