# %% [markdown]
# # 2. Rounding: grids, zero-points, groups, outliers
#
# A quantized weight is a small whole number, its **code**. A **grid** says which value each code stands for.
# Everything else in this course is about choosing grids and codes well. Here we look at the grids, and at the
# simplest choice of codes: round every weight to the nearest level (**RTN**).
#
# After this notebook you can:
#
# - turn a weight into a code and back, by hand;
# - say what a zero-point, a symmetric grid and a group are, and what they cost in bits;
# - see why the numbers that flow *into* a layer are harder to round than the weights *of* the layer.
#
# It needs no network and no GPU.

# %%
import numpy as np
from IPython.display import Markdown

import refquant as rq
from refquant import evaluate, models
from refquant.figures import rounding as figures
from refquant.figures import style, text
from refquant.methods import rtn
from refquant.models import calibrate, walk

model, tokenizer = models.load("tiny")  # trained in 16 bits, never quantized
ids = models.data.calibration("tiny", tokenizer, windows=4).ids  # some text, as tokens
# what each Linear layer (a matrix that multiplies its input) receives on that text
inputs = calibrate.layer_inputs(model, ids, ("x", "hessian"))
weights = {
    (number, name): walk.weight_array(layer)
    for number, block in enumerate(walk.blocks(model))
    for name, layer in walk.linears(block).items()
}
w, x = weights[0, "mlp.down_proj"], inputs[0, "mlp.down_proj"].x
Markdown(
    f"`mlp.down_proj` of block 0: weights {w.shape[0]} × {w.shape[1]}, inputs from "
    f"{len(x)} tokens."
)

# %% [markdown]
# ## A grid, by hand
#
# With $b$ bits there are $2^b$ codes. A grid spaces their values evenly by a **scale** $s$ (the step), and puts the
# value 0 at a code of its own, the **zero-point** $z$:
#
# $$\text{code} = \text{clip}(\text{round}(w / s) + z,\; 0,\; 2^b - 1) \qquad \hat w = (\text{code} - z)\, s$$
#
# - **Asymmetric** (the default here): $s$ and $z$ are chosen so that the levels reach from the smallest to the
#   largest weight. Nothing is wasted when the weights lean to one side.
# - **Symmetric** (`-sym`): the zero-point is the middle code, so it need not be stored. One side may be wasted.
#
# Six weights, 3 bits, both ways:

# %%
few = np.array([[-0.21, -0.08, 0.0, 0.05, 0.13, 0.49]], np.float32)
rows = []
for name in ("int3-row", "int3-row-sym"):
    grid = rq.as_grid(name)
    scale, zero = grid.fit(few)
    codes = grid.encode(few, scale[:, None], zero[:, None])
    back = grid.decode(codes, scale[:, None], zero[:, None])
    listed = (
        " ".join(map(str, codes[0])),
        " ".join(f"{value:.2f}" for value in back[0]),
    )
    rows.append((name, f"{scale[0]:.4f}", int(zero[0]), *listed))
text.table(("grid", "scale", "zero-point", "codes", "values"), rows)

# %% [markdown]
# The weights lean to the right, so the symmetric grid spends levels on negative values that no weight has, and its
# step is wider. Zero itself is exact in both: a grid that cannot represent 0 would change every weight that was
# pruned or padded.
#
# ## Groups
#
# One large weight stretches the grid of everybody who shares its scale. So the row is cut into **groups** of
# $g$ weights (64 or 128, say), each with a scale and a zero-point of its own. Move the controls: more bits, smaller
# groups, symmetric or not. Lines are levels; the right side shows the rounding errors of the whole layer, each in
# steps of its own group.

# %%
from refquant.widgets import rounding as widgets

widgets.grid_on_weights(w)

# %%
figure, said = figures.grid_on_weights(w, bits=4, group_size=64, sym=False)
style.picture(figure, said)

# %% [markdown]
# Rounding to the nearest level is never off by more than half a step, which is what the right side shows; a symmetric
# grid can be off by more at one end, since its top level lies half a step inside the largest weight.
#
# Groups cost bits: a float16 scale (16 bits) and a zero-point of $b$ bits for each. The layer's **output error** is
# what counts in the end, so the next picture compares that, relative to the output, with the bits really stored. The
# points of a line are one scale a row, then groups of 128, 64 and 32.

# %%
sizes = [None, 128, 64, 32]
H = inputs[0, "mlp.down_proj"].hessian.H
errors, bits = {}, {}
for width in (2, 3, 4, 8):
    quantized = [rtn.quantize(w, rq.IntGrid(width, size)) for size in sizes]
    errors[width] = [evaluate.layer_error(w, rq.dequantize(q), H) for q in quantized]
    bits[width] = [q.bits_per_weight for q in quantized]
style.picture(
    figures.error_by_bits(sizes, errors, bits),
    "Output error of the layer against stored bits a weight, for 2, 3, 4 and 8 bits "
    "and four group sizes.",
)

# %%
gain = errors[3][1] / errors[4][1]
Markdown(
    f"At groups of 128, one bit more divides the squared error by **{gain:.1f}**: half "
    "the step, a quarter of its square, and a little more. `int4-g128` stores "
    f"**{bits[4][1]:.3f}** bits a weight, not 4."
)

# %% [markdown]
# How many exactly depends on the file: this is the first place where the usual explanation is only half right.

# %%
text.ledger("int4_g128_is_4_25_bits", "levels_of_4_bits")

# %% [markdown]
# ## Outliers: the inputs are the difficult part
#
# The other factor of the product is the layer's input, its **activations**. One number of the input vector is an
# **input channel**; a value far above the others is an **outlier**. Below, for every input channel: the largest
# magnitude over the median magnitude, of the inputs and of the weights that meet them.

# %%
style.picture(
    figures.channels(x, w),
    "Largest over median magnitude of each input channel: inputs stray much further "
    "than weights.",
)

# %%
spread = {
    key: tuple(
        float(np.abs(v).max() / np.median(np.abs(v)))
        for v in (weights[key], inputs[key].x)
    )
    for key in weights
}
calmer = sum(of_weights < of_inputs for of_weights, of_inputs in spread.values())
largest = max(spread, key=lambda key: spread[key][1])
Markdown(
    f"In **{calmer} of {len(spread)}** layers of this model the weights stray less "
    f"than the inputs. The widest inputs are those of `{largest[1]}` in block "
    f"{largest[0]}: **{spread[largest][1]:.0f}** times their median."
)

# %% [markdown]
# An outlier in a column of inputs is shared by every token, and one scale for all of them (**per tensor**) leaves
# hardly any level for the ordinary values. One scale for each token (**per token**) helps only where outliers sit in
# few tokens. Weights are fixed and can be prepared; inputs come as they come.

# %%
rows = []
for name, one in (("per tensor", x.reshape(1, -1)), ("per token", x)):
    for width in (8, 4):
        rounded = rtn.rounded(
            one, rq.IntGrid(width, sym=True, scale_dtype="float32")
        ).reshape(x.shape)
        lost = np.square((rounded - x) @ w.T).sum() / np.square(x @ w.T).sum()
        rows.append(
            (
                f"inputs int{width}, {name}",
                f"{100 * lost:.3f} %",
                f"{100 * (rounded == 0).mean():.1f} %",
            )
        )
for width in (8, 4):
    q = rq.dequantize(rtn.quantize(w, f"int{width}-g128"))
    rows.append(
        (
            f"weights int{width}-g128",
            f"{100 * evaluate.layer_error(w, q, H):.3f} %",
            f"{100 * (q == 0).mean():.1f} %",
        )
    )
text.table(("rounded", "squared output error", "rounded to exactly 0"), rows)

# %%
text.ledger(
    "weights_are_better_behaved", "outliers_are_ten_to_a_hundred", "outliers_ruin_int8"
)

# %% [markdown]
# ## RTN on the whole model
#
# **Perplexity** is the exponential of the mean surprise per token: 1 would be a model that is always certain and right.
# It depends on the text that is read, so compare it within one notebook only. We round every Linear layer of the
# decoder blocks, and measure on text that the model never saw.

# %%
import copy

held_out = models.data.evaluation("tiny", tokenizer)
base = evaluate.score(
    model, held_out.ids, windows=6, keep=True, bos=models.data.first_token(tokenizer)
)
rows = [("as trained, 16 bits", "16.000", f"{base.perplexity:.2f}", "")]
changes = {}
for grid in ("int8-g128", "int4-g128", "int3-g128"):
    rounded = copy.deepcopy(model)
    report = models.quantize(rounded, "rtn", grid)
    after = evaluate.score(
        rounded,
        held_out.ids,
        windows=6,
        reference=base,
        bos=models.data.first_token(tokenizer),
    )
    changes[grid] = after.perplexity_change
    change = f"{after.perplexity_change:+.3f} ± {after.perplexity_change_stderr:.3f}"
    rows.append(
        (
            f"RTN {grid}",
            f"{report.bits_per_weight:.3f}",
            f"{after.perplexity:.2f}",
            change,
        )
    )
text.table(("weights", "bits a weight", "perplexity", "change"), rows)

# %%
Markdown(
    f"8 bits change the perplexity by {changes['int8-g128']:+.4f}, 4 bits by "
    f"{changes['int4-g128']:+.2f}, 3 bits by {changes['int3-g128']:+.2f}. The step "
    "from 8 to 4 is what the next two notebooks work on: at the same bits, choose the "
    "codes (GPTQ) or the scales (AWQ) with the layer's inputs in mind."
)

# %%
text.ledger("rtn_works_at_8_bits", "rtn_degrades_at_4_bits")

# %% [markdown]
# ## Exercises
#
# 1. A group holds weights from 0.10 to 0.40, all positive. Which 2-bit levels does the asymmetric grid have? Are any
#    wasted?
# 2. Which weight of a group decides its step? What would you have to do to make the step smaller without more bits or
#    smaller groups?
# 3. Groups of 32 with 3-bit codes or one scale a row with 4-bit codes: which stores more bits a weight on a row of 768
#    weights, and which gives the smaller error above?
#
# <details><summary>Answers</summary>
#
# 1. The range is always widened to contain 0, so the levels are about 0, 0.13, 0.27, 0.40: level 0 is wasted on this
#    group. (Check: `rq.as_grid("int2-row").fit(np.array([[0.1, 0.4]], np.float32))`.)
# 2. The largest (and, asymmetric, the smallest). Clip it: give up some accuracy on the extremes for a finer step
#    everywhere else. `refquant.methods.awq.clip` searches that limit; notebook 4 shows it.
# 3. Groups of 32: (3 · 32 + 16 + 3) / 32 bits, against (4 · 768 + 16 + 4) / 768. Their errors are in the next fold.
#
# </details>

# %%
Markdown(
    "<details><summary>Answer 3, in numbers</summary>\n\n"
    f"3 bits in groups of 32: {bits[3][3]:.3f} bits a weight, error "
    f"{100 * errors[3][3]:.2f} %. 4 bits with one scale a row: {bits[4][0]:.3f} bits, "
    f"error {100 * errors[4][0]:.2f} %.\n\n</details>"
)

# %% [markdown]
# ## Quiz

# %%
from refquant.widgets.quiz import Question, quiz

questions = [
    Question(
        "A 4-bit group has one weight ten times as large as all others. What happens to the others?",
        right=(
            "Most of them fall on two or three levels.",
            "The step follows the largest weight.",
        ),
        wrong=[
            (
                "Nothing, each weight is rounded on its own.",
                "Rounded alone, yes, but on a grid that all of them share.",
            ),
            (
                "They are clipped.",
                "Clipping hits what lies outside the range; the range contains all of them.",
            ),
        ],
    ),
    Question(
        "What does a symmetric grid save?",
        right=(
            "The zero-point.",
            "It is always the middle code, so no file needs to hold it.",
        ),
        wrong=[
            (
                "One bit of every code.",
                "The codes keep their bits; each still needs its sign, so to speak.",
            ),
            (
                "The scale.",
                "The scale is still there; without it no code means anything.",
            ),
        ],
    ),
    Question(
        "Why are activations harder to round than weights?",
        right=(
            "A few channels are far larger than the rest, and they change with every input.",
            "Weights can be studied once, offline; activations only when they arrive.",
        ),
        wrong=[
            (
                "There are more of them.",
                "In decode there are far fewer: one vector for each matrix.",
            ),
            (
                "They are always positive.",
                "Behind a SiLU or a norm they have both signs.",
            ),
        ],
    ),
]
quiz(*questions)
