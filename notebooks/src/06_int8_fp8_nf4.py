# %% [markdown]
# # 6. INT8, FP8, NF4 and the 4-bit floats
#
# Four ways to fill a code of 8 or 4 bits. After this notebook you can
#
# - say what an outlier does to 8-bit **activations**, and how LLM.int8 sets outliers apart;
# - read the bits of an FP8 number, and say when it **saturates**;
# - say where NF4's sixteen levels come from, and what the derivation leaves out;
# - tell MXFP4 from NVFP4, and compare all of them on one layer.
#
# A **scale** turns codes into weights; a **group** or **block** is the set of weights that share one (notebook 2).

# %%
import numpy as np
from IPython.display import Markdown

import refquant as rq
from refquant import evaluate, models
from refquant.codebooks import E2M1, E4M3, E5M2, NF4
from refquant.figures import int8_fp8_nf4 as figures
from refquant.figures.style import picture
from refquant.figures.text import ledger, table
from refquant.models import calibrate, walk
from refquant.widgets import int8_fp8_nf4 as widgets

model, tokenizer = models.load("tiny")
ids = models.data.calibration("tiny", tokenizer, windows=1).ids
inputs = calibrate.layer_inputs(model, ids, ("x", "hessian"))
weights = {
    (i, n): walk.weight_array(m)
    for i, b in enumerate(walk.blocks(model))
    for n, m in walk.linears(b).items()
}
x, w = inputs[5, "self_attn.q_proj"].x[:256], weights[5, "self_attn.q_proj"]

# %% [markdown]
# ## LLM.int8: outliers apart
#
# With weights *and* inputs in 8 bits, the product of integers is exact and one factor makes numbers of it. But a
# token's scale follows its largest input. In trained models a few input **columns** are large for every token; a
# single one leaves all the others few levels. LLM.int8 multiplies the columns that reach a threshold, 6 by default,
# apart in floating point, and the rest in 8 bits.
#
# The inputs below are those of a layer of `tiny`. Small models have small outliers: the second control makes the
# three largest columns larger, as large models have them. Threshold 0 sets nothing apart.

# %%
widgets.decomposition(x, w)

# %%
picture(*figures.decomposition(x, w, threshold=6, times=20))

# %% [markdown]
# How far inputs stray, in the layers of `tiny` that stray most. The weights of the same layers stand beside them:
# they are better behaved, which is why weight-only methods leave the inputs alone.

# %%
spread = {
    k: (np.abs(v.x).max() / np.median(np.abs(v.x)), np.abs(v.x).max())
    for k, v in inputs.items()
}
rows = []
for key in sorted(spread, key=lambda key: -spread[key][0])[:5]:
    size = np.abs(weights[key])
    apart = rq.methods.llm_int8.outliers(inputs[key].x).any(axis=0).mean()
    rows.append(
        (
            f"{key[0]}.{key[1]}",
            f"{spread[key][0]:.0f}",
            f"{size.max() / np.median(size):.0f}",
            f"{100 * apart:.0f} %",
        )
    )
table(
    (
        "layer",
        "inputs: largest / median",
        "weights: largest / median",
        "columns that reach 6",
    ),
    rows,
)

# %%
ledger(
    "outliers_are_ten_to_a_hundred",
    "outliers_ruin_int8",
    "int8_is_lossless",
    "int8_is_faster",
)

# %% [markdown]
# ## FP8: levels spaced by a factor
#
# A small float has a sign, an **exponent** and a **fraction**. E4M3 has 4 + 3 bits, E5M2 has 5 + 2, and
# E2M1, the 4-bit float, 2 + 1. Between two powers of two the steps are even;
# above, they double. So the *relative* error stays the same down to very small numbers, where an integer grid has
# none left.
#
# Move the number through a format and watch the code. Beyond the largest value a cast either **saturates** (keeps the
# largest) or gives what the format has beyond it: infinity in E5M2, NaN in E4M3. Programs differ here: torch and
# ml_dtypes do not cast E4M3 alike.

# %%
Markdown(
    "The largest values: "
    + ", ".join(f"{kind.name} {kind.max:g}" for kind in (E4M3, E5M2, E2M1))
    + "."
)

# %%
widgets.cast()

# %%
picture(*figures.cast("E4M3", 2**8.9))

# %% [markdown]
# The rounding error by magnitude. INT8 is better for weights near the largest of their group, FP8 for all that are
# much smaller; that is why one FP8 scale for a whole row, or a whole matrix, will do.

# %%
picture(*figures.relative_errors())

# %% [markdown]
# FP8 weights with a scale for each row are written in three lines:

# %%
scale = np.abs(w).max(axis=1, keepdims=True) / np.float32(E4M3.max)
codes = E4M3.encode(w / scale)
assert np.array_equal(
    E4M3.decode(codes) * scale, rq.dequantize(rq.quantize(w, "fp8-e4m3"))
)
codes[0, :8]

# %% [markdown]
# ## NF4: levels from the normal distribution
#
# QLoRA's NF4 places sixteen levels at quantiles of a normal distribution, so that each stands for equally many
# weights, and divides every block of 64 by its largest magnitude. The levels are one fixed table:

# %%
Markdown(" ".join(f"`{value:.4f}`" for value in NF4.values))

# %% [markdown]
# Equally many? Only if the largest magnitude of a block were always the same quantile. It is not, and larger blocks
# have larger maxima. Move the block size and watch how unevenly the codes are used.

# %%
widgets.normal_levels(weights[3, "mlp.down_proj"])

# %%
picture(*figures.normal_levels(weights[3, "mlp.down_proj"], 64))

# %%
ledger("nf4_is_four_bits")

# %% [markdown]
# NF4 was made for **training**: the base model is frozen in 4 bits and adapters beside it learn. Nothing is
# calibrated, because what rounding breaks the training can mend. Serving has no such second chance; GPTQ and AWQ put
# the effort into the rounding instead.
#
# ## MXFP4 and NVFP4: small blocks of 4-bit floats
#
# Both have E2M1 codes. MXFP4 shares a **power of two** among 32 weights, so its largest level can lie up to almost
# twice above or a third below the largest weight. NVFP4 shares an **E4M3 scale** among 16 weights, with one float32
# for the matrix. New GPUs multiply both as they are.

# %%
widgets.block_levels(w)

# %%
picture(*figures.block_levels(w, "nvfp4", 1))

# %% [markdown]
# ## All of them on one layer, and on the model
#
# The error of the layer's output (its inputs are those of real text), in the median of the layers of three blocks:

# %%
rows, keys = [], [key for key in inputs if key[0] in (0, 3, 6)]
for name in (
    "int8-row",
    "llm-int8",
    "fp8-e4m3",
    "fp8-e5m2",
    "int4-g128",
    "nf4",
    "nf4-dq",
    "mxfp4",
    "nvfp4",
):
    found = [rq.quantize(weights[key], name) for key in keys]
    errors = [
        evaluate.layer_error(weights[k], rq.dequantize(q), inputs[k].hessian.H)
        for k, q in zip(keys, found, strict=True)
    ]
    bits = 8 * sum(q.nbytes for q in found) / sum(weights[key].size for key in keys)
    rows.append((name, f"{bits:.3f}", f"{100 * np.median(errors):.4f} %"))
table(("format", "bits a weight", "output error, weights only"), rows)

# %% [markdown]
# And the **perplexity** (the exponential of the mean surprise for each token, lower is better; it depends on the text
# that is read, so compare within one notebook only) on held-out text, with its change against the unquantized model,
# token by token. Only LLM.int8 also rounds the inputs.

# %%
held_out = models.data.evaluation("tiny", tokenizer).ids
reference = evaluate.score(model, held_out, windows=3, keep=True)
rows = [("unquantized", f"{reference.perplexity:.3f}", "-")]
for method, grid in (
    ("llm-int8", "llm-int8"),
    ("fp8", "fp8-e4m3"),
    ("nf4", "nf4"),
    ("rtn", "nvfp4"),
    ("rtn", "mxfp4"),
):
    candidate, _ = models.load("tiny")
    models.quantize(candidate, method, grid)
    scores = evaluate.score(candidate, held_out, windows=3, reference=reference)
    change = f"{scores.perplexity_change:+.3f} ± {scores.perplexity_change_stderr:.3f}"
    rows.append((grid, f"{scores.perplexity:.3f}", change))
table(("tiny", "perplexity", "change"), rows)

# %% [markdown]
# ## Exercises
#
# 1. Write 0.4375 in E4M3: sign, exponent, fraction.
#
# <details><summary>Answer</summary>
# 0.4375 = 1.75 · 2⁻². The exponent is stored plus 7, so 5 = 0101; the fraction is .75 = 110. The code is 0 0101 110,
# and nothing is rounded. Check with <code>E4M3.encode(np.float32([0.4375]))</code>.
# </details>
#
# 2. A block of 32 weights has the largest magnitude 7.9. What does MXFP4 make of it? And of 4.1?
#
# <details><summary>Answer</summary>
# floor(log2 7.9) − 2 = 0, so the scale is 1 and 7.9 saturates at 6. For 4.1 the scale is 1 as well, and 4.1 becomes
# 4.
# </details>
#
# 3. Why does LLM.int8 set whole columns apart, and not single numbers?
#
# <details><summary>Answer</summary>
# A column of inputs meets one column of weights: the product splits into two smaller dense products. Single numbers
# would need a sparse product. It also works only because outliers keep to the same columns.
# </details>
#
# ## Quiz

# %%
from refquant.widgets.quiz import Question, quiz

questions = [
    Question(
        "Why does FP8 need fewer scales than INT8?",
        right=(
            "Its steps shrink with the number, so small weights keep their precision",
            "Relative error is even.",
        ),
        wrong=[
            (
                "It has more codes",
                "Both have 256 patterns, and FP8 spends some on NaN.",
            ),
            (
                "Its largest value is larger",
                "Scaling takes care of range; it is the spacing that differs.",
            ),
        ],
    ),
    Question(
        "What becomes of 500 in E4M3?",
        right=(
            "448 or NaN, depending on the program",
            "E4M3 has no infinity: it saturates or gives NaN.",
        ),
        wrong=[
            ("512", "The largest value is 448."),
            ("Infinity", "E4M3 has none; E5M2 does."),
        ],
    ),
    Question(
        "Are NF4's sixteen codes used equally often?",
        right=(
            "No: the ends are rare, because blocks differ in their maxima",
            "See the bars above.",
        ),
        wrong=[
            (
                "Yes, that is what quantiles give",
                "They would if all maxima were the same quantile.",
            ),
            (
                "Yes, if the weights are exactly normal",
                "Even then the maximum of a block varies.",
            ),
        ],
    ),
]
quiz(*questions)
