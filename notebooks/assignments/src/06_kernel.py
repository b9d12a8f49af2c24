# %% [markdown]
# # Assignment 6: a kernel
#
# 20 points, about 2 hours. Before it: assignments 1 and 2, notebook 08 (kernels).
#
# Decode is as fast as the weights can be read. A kernel that first writes the weights out as floats moves many times the
# bytes. You write the product of a 4-bit matrix and a vector that reads the codes once and never stores a decoded matrix:
# first right, then fast, with [Numba](https://numba.pydata.org), which compiles Python loops.
#
# The matrix `[n, k]`:
#
# - `codes`, uint8 `[n, k/2]`: byte c of a row holds column 2c in its low nibble and column 2c + 1 in its high nibble;
# - `scales`, float32 `[n, G]`, and `zeros`, uint8 `[n, G]`: one for each group of `size` columns, G = k / size;
# - the weight in row i, column j is `(code - zero) * scale`, and `y[i]` is the sum over j of weight times `x[j]`.
#
# Write only in the cells that say `YOUR CODE HERE`. The cell after each tries your function; when your work is graded it
# runs with other data, and each case that is right counts.

# %% nbgrader={"grade": false, "grade_id": "setup", "locked": true, "schema_version": 3, "solution": false, "task": false}
import numba
import numpy as np

from refquant import classroom

# %% [markdown]
# ## 1. The least bytes
#
# What must one product move? Codes, scales and zero-points once; x (float32) read and y (float32) written.


# %% nbgrader={"grade": false, "grade_id": "least_bytes", "locked": false, "schema_version": 3, "solution": true, "task": false}
def least_bytes(n, k, size):
    """Bytes (int) that one product must move."""
    ### BEGIN SOLUTION
    groups = n * k // size
    return n * k // 2 + 4 * groups + groups + 4 * (k + n)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_least_bytes", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# 3 points. Here the visible cases are tried; graded are others.
classroom.check(least_bytes, "kernel.least_bytes")
### BEGIN HIDDEN TESTS
classroom.grade(least_bytes, "kernel.least_bytes")
### END HIDDEN TESTS

# %% [markdown]
# ## 2. Right
#
# Any way that gives the right y, in NumPy or in loops.


# %% nbgrader={"grade": false, "grade_id": "matvec", "locked": false, "schema_version": 3, "solution": true, "task": false}
def matvec(codes, scales, zeros, size, x):
    """y, float32 [n]."""
    ### BEGIN SOLUTION
    q = np.stack([codes & 15, codes >> 4], axis=2).reshape(len(codes), -1).astype(np.float32)
    w = (q - np.repeat(zeros, size, axis=1)) * np.repeat(scales, size, axis=1)
    return w @ x
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_matvec", "locked": true, "points": 6, "schema_version": 3, "solution": false, "task": false}
# 6 points. Here the visible cases are tried; graded are others.
classroom.check(matvec, "kernel.matvec")
### BEGIN HIDDEN TESTS
classroom.grade(matvec, "kernel.matvec")
### END HIDDEN TESTS

# %% [markdown]
# ## 3. Fast
#
# Now without a decoded matrix. `rows` has the loops and is compiled by Numba; `fast` prepares what it needs and calls it.
# You may change the arguments of `rows`. Four things help:
#
# - the zero-point can leave the inner loop: $\sum (q - z)\, s\, x = s\,(\sum q\, x - z \sum x)$, and the sum of a group's x
#   is the same for all rows;
# - the processor likes neighbours: split x into its even and odd columns once, before the loops;
# - float32 everywhere: a Python float or an int64 in the inner loop halves the speed;
# - slices of the group, `codes[i, first:last]`, before the inner loop: with places counted from the row's start, Numba must
#   provide for negative ones in the inner loop, and the compiler does not turn it into vector instructions.
#
# **Bytes moved** counts the least, plus twice what your call held in memory beside it at its peak. **The race** is against
# decoding everything and multiplying in NumPy, in turns with your function; the least processor time of each side counts.
#
# Beside NumPy and the standard library, Numba is allowed here.


# %% nbgrader={"grade": false, "grade_id": "rows", "locked": false, "schema_version": 3, "solution": true, "task": false}
@numba.njit(fastmath=True)
def rows(codes, scales, zeros, half, even, odd, sums, y):
    """Fill y [n]. half: bytes of a group; even, odd [k/2]: columns of x; sums [G]: of x over each group."""
    ### BEGIN SOLUTION
    for i in range(codes.shape[0]):
        total = np.float32(0)
        for g in range(scales.shape[1]):
            first, last = g * half, (g + 1) * half
            group, e, o = codes[i, first:last], even[first:last], odd[first:last]
            dot = np.float32(0)
            for c in range(half):
                dot += np.float32(group[c] & 15) * e[c] + np.float32(group[c] >> 4) * o[c]
            total += scales[i, g] * (dot - np.float32(zeros[i, g]) * sums[g])
        y[i] = total
    ### END SOLUTION


# %% nbgrader={"grade": false, "grade_id": "fast", "locked": false, "schema_version": 3, "solution": true, "task": false}
def fast(codes, scales, zeros, size, x):
    """y, float32 [n], without a decoded matrix."""
    ### BEGIN SOLUTION
    even, odd = np.ascontiguousarray(x[::2]), np.ascontiguousarray(x[1::2])
    sums = x.reshape(-1, size).sum(axis=1)
    y = np.empty(len(codes), np.float32)
    rows(codes, scales, zeros, size // 2, even, odd, sums, y)
    return y
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_fast", "locked": true, "points": 11, "schema_version": 3, "solution": false, "task": false}
# 11 points. Here the visible cases are tried; graded are others.
classroom.check(fast, "kernel.fast")
### BEGIN HIDDEN TESTS
classroom.grade(fast, "kernel.fast")
### END HIDDEN TESTS

# %% [markdown]
# ## To think about (no points)
#
# - At your best time, how many bytes per second did your kernel read? What can one core of this machine read?
# - What would change for two threads? For a batch of 8 vectors?
