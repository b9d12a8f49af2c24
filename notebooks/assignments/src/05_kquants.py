# %% [markdown]
# # Assignment 5: k-quants
#
# 20 points, about 2 hours. Before it: assignment 1, notebook 05 (k-quants).
#
# llama.cpp's formats with a K keep 256 weights in a **block** of bytes. A block has sub-blocks with a scale each, and the
# scales are small integers themselves. You read and write such blocks byte by byte.
#
# A **nibble** is half a byte: the low one is `byte & 15`, the high one `byte >> 4`. Bytes come as `uint8` arrays. Write only
# in the cells that say `YOUR CODE HERE`. The cell after each tries your function; when your work is graded it runs with
# other data, and each case that is right counts.

# %% nbgrader={"grade": false, "grade_id": "setup", "locked": true, "schema_version": 3, "solution": false, "task": false}
import numpy as np

from refquant import classroom

# %% [markdown]
# ## 1. Sixteen numbers of six bits in twelve bytes
#
# A Q4_K block has 8 sub-blocks of 32 weights, each with a scale and a minimum of 6 bits:
#
# | bytes | bits 0 to 3 | bits 4, 5 | bits 6, 7 |
# | --- | --- | --- | --- |
# | 0 to 3 | scale j, lower four bits | scale j, upper two | upper two bits of scale j + 4 |
# | 4 to 7 | minimum j, lower four bits | minimum j, upper two | upper two bits of minimum j + 4 |
#
# for j = 0 to 3; and in bytes 8 to 11 the low nibble holds the lower four bits of scale j + 4, the high nibble those of
# minimum j + 4. Return `(scales [8], mins [8])`.


# %% nbgrader={"grade": false, "grade_id": "six_bits", "locked": false, "schema_version": 3, "solution": true, "task": false}
def six_bits(data):
    """Scales and minima, 8 integers each, of data uint8 [12]."""
    ### BEGIN SOLUTION
    first, second, shared = data[:4], data[4:8], data[8:]
    scales = np.concatenate([first & 63, shared & 15 | first >> 6 << 4])
    mins = np.concatenate([second & 63, shared >> 4 | second >> 6 << 4])
    return scales, mins
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_six_bits", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# 3 points. Here the visible cases are tried; graded are others.
classroom.check(six_bits, "kquants.six_bits")
### BEGIN HIDDEN TESTS
classroom.grade(six_bits, "kquants.six_bits")
### END HIDDEN TESTS

# %% [markdown]
# ## 2. The codes
#
# 256 codes of four bits in 128 bytes. The first 32 bytes hold sub-block 0 in their low nibbles and sub-block 1 in their
# high nibbles; the next 32 bytes hold sub-blocks 2 and 3, and so on.


# %% nbgrader={"grade": false, "grade_id": "codes", "locked": false, "schema_version": 3, "solution": true, "task": false}
def codes(qs):
    """256 codes, in the order of the weights, of qs uint8 [128]."""
    ### BEGIN SOLUTION
    parts = qs.reshape(4, 32)
    return np.stack([parts & 15, parts >> 4], axis=1).ravel()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_codes", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# 3 points. Here the visible cases are tried; graded are others.
classroom.check(codes, "kquants.codes")
### BEGIN HIDDEN TESTS
classroom.grade(codes, "kquants.codes")
### END HIDDEN TESTS

# %% [markdown]
# ## 3. Decode a block
#
# | bytes | field |
# | --- | --- |
# | 0, 1 | `d`, float16, little-endian |
# | 2, 3 | `dmin`, float16, little-endian |
# | 4 to 15 | scales and minima |
# | 16 to 143 | codes |
#
# Weight i of sub-block j is `d * scale[j] * code[i] - dmin * min[j]`. `data[:2].view("<f2")` reads a float16.


# %% nbgrader={"grade": false, "grade_id": "decode", "locked": false, "schema_version": 3, "solution": true, "task": false}
def decode(block):
    """256 weights, float32, of a block uint8 [144]."""
    ### BEGIN SOLUTION
    d, dmin = block[:4].view("<f2").astype(np.float32)
    scales, mins = six_bits(block[4:16])
    step, offset = np.repeat(d * scales, 32), np.repeat(dmin * mins, 32)
    return (step * codes(block[16:]) - offset).astype(np.float32)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_decode", "locked": true, "points": 4, "schema_version": 3, "solution": false, "task": false}
# 4 points. Here the visible cases are tried; graded are others.
classroom.check(decode, "kquants.decode")
### BEGIN HIDDEN TESTS
classroom.grade(decode, "kquants.decode")
### END HIDDEN TESTS

# %% [markdown]
# ## 4. Encode
#
# Any blocks that decode well are right. A plain way, for each block of 256 weights:
#
# 1. for each sub-block `low = min(x.min(), 0)` and `high = max(x.max(), 0)`; its scale should be `(high - low) / 15`, its
#    minimum `-low` (stored positive, subtracted when decoding);
# 2. `d` is the largest of the 8 scales over 63, `dmin` the largest of the minima over 63, both in float16; each scale and
#    minimum becomes an integer from 0 to 63 (where `d` or `dmin` is 0, 0);
# 3. the codes are chosen for what the block now says, `d * scale[j]` and `dmin * min[j]`, not for what you wanted in 1;
# 4. pack everything as in 1 to 3 above.
#
# Your error may be 2 % above that of this plain way. ggml searches for better scales: the score shows how far it gets.


# %% nbgrader={"grade": false, "grade_id": "encode", "locked": false, "schema_version": 3, "solution": true, "task": false}
def encode(w):
    """Blocks uint8 [n, 144] of weights float32 [n, 256]."""
    ### BEGIN SOLUTION
    blocks = []
    for row in w:
        x = row.reshape(8, 32)
        low, high = np.minimum(x.min(axis=1), 0), np.maximum(x.max(axis=1), 0)
        wanted, least = (high - low) / 15, -low
        d, dmin = np.float16(wanted.max() / 63), np.float16(least.max() / 63)
        scales = np.clip(np.rint(wanted / np.float32(d or 1)), 0, 63).astype(np.uint8)
        mins = np.clip(np.rint(least / np.float32(dmin or 1)), 0, 63).astype(np.uint8)
        step, offset = np.float32(d) * scales, np.float32(dmin) * mins
        step = np.where(step > 0, step, 1)
        q = np.clip(np.rint((x + offset[:, None]) / step[:, None]), 0, 15).astype(np.uint8).reshape(4, 2, 32)
        twelve = [
            scales[:4] | scales[4:] >> 4 << 6,
            mins[:4] | mins[4:] >> 4 << 6,
            scales[4:] & 15 | (mins[4:] & 15) << 4,
        ]
        head = np.array([d, dmin], "<f2").view(np.uint8)
        blocks.append(np.concatenate([head, *twelve, (q[:, 0] | q[:, 1] << 4).ravel()]))
    return np.stack(blocks)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_encode", "locked": true, "points": 5, "schema_version": 3, "solution": false, "task": false}
# 5 points. Here the visible cases are tried; graded are others.
classroom.check(encode, "kquants.encode")
### BEGIN HIDDEN TESTS
classroom.grade(encode, "kquants.encode")
### END HIDDEN TESTS

# %% [markdown]
# ## 5. The scales of Q3_K
#
# Q3_K has 16 sub-blocks of 16 weights and no minima. Its 16 scales have 6 bits and a sign: they are stored 32 higher, so
# 0 to 63 stands for -32 to 31. In twelve bytes: byte i of the first 8 holds the lower four bits of scale i in its low
# nibble and of scale i + 8 in its high nibble. The last four bytes hold the upper two bits: byte 8 + i has those of scale
# i in bits 0 and 1, of scale i + 4 in bits 2 and 3, of i + 8 in bits 4 and 5, of i + 12 in bits 6 and 7.


# %% nbgrader={"grade": false, "grade_id": "q3_scales", "locked": false, "schema_version": 3, "solution": true, "task": false}
def q3_scales(data):
    """16 signed integers of data uint8 [12]."""
    ### BEGIN SOLUTION
    lower = np.concatenate([data[:8] & 15, data[:8] >> 4])
    upper = np.concatenate([data[8:] >> shift & 3 for shift in (0, 2, 4, 6)])
    return (lower | upper << 4).astype(int) - 32
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_q3_scales", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
# 2 points. Here the visible cases are tried; graded are others.
classroom.check(q3_scales, "kquants.q3_scales")
### BEGIN HIDDEN TESTS
classroom.grade(q3_scales, "kquants.q3_scales")
### END HIDDEN TESTS

# %% [markdown]
# ## 6. Why a scale can be negative
#
# A code of Q3_K stands for -4 to 3: one level more below 0 than above. The weight of largest magnitude should get the
# longer side, -4, *whichever sign it has*. Explain with a function what that makes of the scale: for one sub-block return
# `(scale, codes)`, a float and the codes as stored (0 to 7, 4 higher than what they stand for), with
# `weight = scale * (code - 4)`.


# %% nbgrader={"grade": false, "grade_id": "q3_sub_block", "locked": false, "schema_version": 3, "solution": true, "task": false}
def q3_sub_block(x):
    """Scale and codes uint8 [16] of 16 weights x."""
    ### BEGIN SOLUTION
    scale = x[np.argmax(np.abs(x))] / -4
    return scale, (np.clip(np.rint(x / scale), -4, 3) + 4).astype(np.uint8)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "graded_q3_sub_block", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
# 3 points. Here the visible cases are tried; graded are others.
classroom.check(q3_sub_block, "kquants.q3_sub_block")
### BEGIN HIDDEN TESTS
classroom.grade(q3_sub_block, "kquants.q3_sub_block")
### END HIDDEN TESTS

# %% [markdown]
# ## To think about (no points)
#
# - How many bits per weight does a Q4_K block take? And a Q3_K block of 110 bytes?
# - Step 3 of the encoder chooses codes for the stored scale. What goes wrong without it?
