# %% [markdown]
# # 10. Verify yours
#
# You wrote a decoder, a packer, a quantizer or a kernel. Is it right, byte for byte? `refquant.verify` holds cases
# whose right answers come from the programs that own the formats (ggml, GPTQModel, compressed-tensors, torch ...),
# never from refquant. After this notebook you can
#
# - connect your code to the cases in a few lines, and read what comes back;
# - find a bug from the explanation, and prove it gone;
# - put the cases into your own test suite, with known failures stated;
# - say why "looks close" is not a test.
#
# It runs offline; NumPy is all that the cases need. Block formats are told in notebook 5.

# %%
import textwrap

import numpy as np
from IPython.display import Markdown

import refquant as rq
from refquant import verify
from refquant.figures import verify_yours as figures
from refquant.figures.style import picture
from refquant.figures.text import table
from refquant.verify import report as reports
from refquant.widgets import verify_yours as widgets

cases = verify.select()
Markdown(
    f"{len(cases):,} cases of {len({case.format for case in cases})} formats and "
    f"{len({case.op for case in cases})} operations; {len(verify.mistakes())} known "
    "mistakes, each with the place where somebody made it."
)

# %% [markdown]
# ## Connect
#
# Offer any of the operations as functions: an object, a class or a module will do. Here is a decoder of Q6_K as one
# might write it in an evening. A block of 256 weights has the low four bits of the codes in 128 bytes, the high two
# in 64, sixteen signed scales, and a float16 `d`; a weight is d · scale · (code − 32).
#
# **One bug is planted.** Try to see it before you run the next cells.


# %%
class Mine:
    formats = ("Q6_K",)  # what it offers; all other cases are skipped

    def dequantize(self, data, *, shape):
        block = data.reshape(-1, 210)
        ql, qh, scales, d = np.split(block, [128, 192, 208], axis=1)
        low = ql.reshape(-1, 4, 1, 32) >> np.array([0, 4], np.uint8)[:, None] & 15
        shift = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
        high = qh.reshape(-1, 2, 1, 32) >> shift & 3
        codes = low.reshape(-1, 256) | high.reshape(-1, 256) << 4
        d, scales = d.copy().view("<f2"), scales.view(np.int8)
        step = d.astype(np.float32) * scales.astype(np.float32)  # [blocks, 16]
        weights = np.repeat(step, 16, axis=1) * (codes.astype(np.float32) - 32)
        return weights.reshape(shape)


report = verify.check(Mine, only="q6_k and gguf-decode")
picture(*figures.results(report))

# %% [markdown]
# ## Read the explanation
#
# A failure is explained in the format's own terms: where the first difference is, what the fields of that block hold,
# and what the wrong weights imply about them. Read it, and look for the field that it accuses.

# %%
failed = next(result for result in report.results if result.bad)
for line in reports.failure(failed).splitlines():
    columns = line.startswith(("  weight  ", "  expected  ", "  got  "))  # five of them
    print(line[:78] if columns else textwrap.fill(line, 88, subsequent_indent="    "))

# %% [markdown]
# <details><summary>The bug</summary>
# The low halves of Q6_K lie in planes of <b>64</b>: the first 64 codes are the low halves of bytes 0 to 63. Mine
# takes planes of 32, as Q4_K has them. The scales are right, and every weight has the right high bits.
# </details>
#
# ## Fix, and prove it
#
# One line changes. The same cases must now pass, all of them, including NaN, infinities and the largest codes: the
# weights are compared bit by bit.


# %%
class Fixed(Mine):
    def dequantize(self, data, *, shape):
        block = data.reshape(-1, 210)
        ql, qh, scales, d = np.split(block, [128, 192, 208], axis=1)
        low = ql.reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8)[:, None] & 15
        shift = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
        high = qh.reshape(-1, 2, 1, 32) >> shift & 3
        codes = low.reshape(-1, 256) | high.reshape(-1, 256) << 4
        d, scales = d.copy().view("<f2"), scales.view(np.int8)
        step = d.astype(np.float32) * scales.astype(np.float32)
        weights = np.repeat(step, 16, axis=1) * (codes.astype(np.float32) - 32)
        return weights.reshape(shape)


fixed = verify.check(Fixed, only="q6_k and gguf-decode")
print(reports.summary(fixed))
assert fixed.ok

# %% [markdown]
# ## Why "looks close" is not a test
#
# How wrong was the buggy decoder? Suppose a test had compared its weights with a tolerance, or only the sizes of
# things. Below, on real weights of a normal distribution: several usual comparisons, and whether each notices.

# %%
w = np.random.default_rng(0).normal(size=(8, 1024)).astype(np.float32)
coded = rq.quantize(w, "Q6_K")
blocks, right = coded.arrays["blocks"], rq.dequantize(coded)
x = np.random.default_rng(1).normal(size=1024).astype(np.float32)
wrong = Mine().dequantize(blocks, shape=w.shape)
off = right.copy()
off[3, 256:512] *= np.float32(1.01)  # another bug: one block's scale off by a hundredth
nan = right.copy()
nan[5] = np.nan


def loop_error(values):
    return np.abs(
        values.astype(np.float64) @ x.astype(np.float64)
        - right.astype(np.float64) @ x.astype(np.float64)
    ).max()


checks = {
    "standard deviation within 1 %": lambda v: abs(v.std() / right.std() - 1) < 0.01,
    "np.allclose(rtol=0.05, atol=0.05)": lambda v: np.allclose(
        v, right, rtol=0.05, atol=0.05
    ),
    "not (error of the product > 1)": lambda v: not loop_error(v) > 1,
    "bit by bit": lambda v: np.array_equal(v.view(np.uint32), right.view(np.uint32)),
}
rows = [
    (name, *("passes" if check(v) else "FAILS" for v in (right, wrong, off, nan)))
    for name, check in checks.items()
]
table(("comparison", "right", "planes of 32", "one scale + 1 %", "a row of NaN"), rows)

# %% [markdown]
# A decoder has one right answer, so it is compared bit by bit. A *product* is not: its sums may be taken in any
# order. There the kit asks for a finite result whose largest error is at most twice that of a plain float32 loop.
#
# ## Bugs to recognise
#
# These decoders are wrong in ways that people really were. Look at the error first: is it every weight or some, in a
# pattern along the row, a wrong factor or wrong places? Guess, then tick the box.

# %%
widgets.bugs()

# %%
picture(*figures.bug(1, told=True))

# %%
bugs = figures.decoders()
known = verify.mistakes()
table(
    ("bug", "format", "met in"),
    [
        (number, bug.formats[0], ", ".join(known[bug.number]["issues"][:2]))
        for number, bug in enumerate(bugs)
    ],
    words=True,
)

# %% [markdown]
# ## In your own tests
#
# One line makes a pytest test of every case; a TOML file names the failures that you know of, each with a reason. On
# the command line it is `refquant verify`:
#
# ```python
# from refquant.verify.pytest_suite import conformance
# test_conformance = conformance(
#     my_package.decoders, only="gguf-decode", expect="expectations.toml"
# )
# ```
#
# ```sh
# refquant verify --impl my_package.decoders --only "q6_k and decode"
# ```
#
# What a case of Q6_K catches:

# %%
table(
    ("case", "catches"),
    [(case.id, case.catches) for case in verify.select("q6_k and gguf-decode")],
    words=True,
)

# %% [markdown]
# ## Exercises
#
# 1. Break `Fixed` in another way: take the scales as unsigned bytes. Which cases still pass, and why?
#
# <details><summary>Answer</summary>
# Those whose scales are all below 128 in the file. Random bytes are legal blocks, and half of random scales are
# negative: that is why the cases have them.
# </details>
#
# 2. Offer <code>quantize</code> for Q8_0 and check it. What must the bytes equal?
#
# <details><summary>Answer</summary>
# Those of ggml: the scale is the largest magnitude / 127, divided in float32 and stored as float16, and codes are
# rounded with the float32 scale's inverse. Halves round away from zero.
# </details>
#
# 3. Your kernel's product differs from the kit's in the last bits. Is it wrong?
#
# <details><summary>Answer</summary>
# Not by that. It is wrong if its largest error against float64 is more than twice that of a plain float32 loop, or if
# anything is not finite.
# </details>
#
# ## Quiz

# %%
from refquant.widgets.quiz import Question, quiz

questions = [
    Question(
        "Where do the expected answers of the kit come from?",
        right=(
            "From the programs that own the formats",
            "Each case names its program and version.",
        ),
        wrong=[
            (
                "From refquant's own reference",
                "Then a mistake there would be repeated in the test.",
            ),
            ("From the papers", "Papers define methods; programs define bytes."),
        ],
    ),
    Question(
        "Your packer and your unpacker are inverse to each other. Is the format right?",
        right=(
            "That shows nothing about the format",
            "Two equal mistakes cancel. Compare bytes with another program.",
        ),
        wrong=[
            (
                "Yes: a round trip proves it",
                "A wrong order, packed and unpacked alike, survives a round trip.",
            ),
            (
                "Yes, if all codes were tried",
                "The mistake may be the order, not the codes.",
            ),
        ],
    ),
    Question(
        "`if error > tolerance: fail` saw no failure. Why may the result still be NaN?",
        right=(
            "Every comparison with NaN is false",
            "So it does not fail. Ask that the error is at most the tolerance.",
        ),
        wrong=[
            (
                "The tolerance was too large",
                "No tolerance helps: NaN > t is false for all t.",
            ),
            ("NaN equals NaN", "It does not, and that is not what was asked."),
        ],
    ),
]
quiz(*questions)
