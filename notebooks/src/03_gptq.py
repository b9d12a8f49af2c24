# %% [markdown]
# # 3. GPTQ: let the other columns make up for the error
#
# Rounding to the nearest level (**RTN**) treats every weight alone. But the weights of a row work together: the layer's
# output is their sum, weighted by inputs that are **correlated**. If rounding pushes one weight up, another weight
# whose input moves in step with it can be pushed down, and most of the output error is gone. **GPTQ** does this column
# by column.
#
# After this notebook you can:
#
# - explain what the Hessian is for, and compute it from inputs;
# - follow the error from column to column, in pictures and in code;
# - say what damping, blocks and act-order do, and when GPTQ goes wrong.
#
# It needs no network and no GPU.

# %%
import copy
import time

import numpy as np
from IPython.display import Markdown

import refquant as rq
from refquant import evaluate, models
from refquant.figures import gptq as figures
from refquant.figures import style, text
from refquant.methods import gptq, obq, rtn
from refquant.models import calibrate, walk

model, tokenizer = models.load("tiny")
# calibration text: what the method may look at
ids = models.data.calibration("tiny", tokenizer, windows=8).ids
inputs = calibrate.layer_inputs(model, ids, ("x", "hessian"))
weights = {
    (number, name): walk.weight_array(layer)
    for number, block in enumerate(walk.blocks(model))
    for name, layer in walk.linears(block).items()
}
Markdown(f"{len(weights)} Linear layers, calibrated on {ids.size} tokens.")

# %% [markdown]
# ## The Hessian: which inputs move together
#
# Change a row of weights by $\delta$. The output changes by $\delta \cdot x$ for every input $x$, and its mean square
# over the calibration tokens is a quadratic form,
#
# $$\tfrac12\,\delta H \delta^\top \qquad\text{with}\qquad H = \tfrac{2}{m} \sum_{\text{tokens}} x x^\top .$$
#
# $H$ is the **Hessian**: the second derivative of the squared error. It depends on the inputs only, so all rows of the
# layer share it. Its diagonal says how large each input is; the rest says which inputs move together.

# %%
H = inputs[0, "self_attn.q_proj"].hessian.H
style.picture(
    figures.hessian(H),
    "Correlations between the inputs of q_proj in block 0, and the sorted diagonal of "
    "its Hessian.",
)

# %% [markdown]
# Blue and red off the diagonal are what RTN leaves unused. (With white noise as input there would be none, $H$ would be
# diagonal, and GPTQ would be RTN.)
#
# ## One step
#
# Round column $j$; call the error $\delta_j = w_j - \hat w_j$. Among all ways to change the columns that are still
# free, the one that hurts the output least is
#
# $$w_F \leftarrow w_F - \frac{\delta_j}{[H_F^{-1}]_{jj}}\,[H_F^{-1}]_{:,j}
# \qquad\text{at the cost}\qquad \tfrac12 \frac{\delta_j^2}{[H_F^{-1}]_{jj}},$$
#
# where $F$ are the free columns. **OBQ**, the older method, uses this with the cheapest weight of each row first, so
# each row needs an inverse of its own. GPTQ takes the same order for all rows. Then one Cholesky factor of $H^{-1}$ (a
# triangular matrix $U$ with $U^\top U = H^{-1}$) holds every inverse that will be needed, and the whole method is this
# loop (from `refquant/methods/gptq.py`):

# %%
import inspect
import textwrap

source = inspect.getsource(gptq._quantize)
loop = source[source.index("            w = W1") : source.index("        losses[i1")]
Markdown(f"```python\n{textwrap.dedent(loop)}```")

# %% [markdown]
# ## Watch the error move
#
# A small layer: 24 outputs of `o_proj` in block 4, and the 32 inputs that come from the first attention head. Left of
# the line, columns are rounded; right of it, they have been moved to make up for it. Press play, or step with the arrow
# keys. Then try other bits, and another order.

# %%
from refquant.widgets import gptq as widgets

small = weights[4, "self_attn.o_proj"][:24, :32]
small_H = gptq.hessian(inputs[4, "self_attn.o_proj"].x[:, :32])
widgets.steps(small, small_H, group_size=32)

# %%
traced = evaluate.trace(small, small_H, "int3-g32")
figure, said = figures.step(traced, 20)
style.picture(figure, said)

# %% [markdown]
# The right side is the point: both curves rise as more columns are rounded, and at the end nothing is left that could
# make up for the last column. What GPTQ loses is less at every step.

# %%
rows = []
for name, run in {
    "RTN": lambda grid: rtn.quantize(small, grid),
    "GPTQ": lambda grid: gptq.quantize(small, small_H, grid).quantized,
    "GPTQ, largest inputs first": lambda grid: (
        gptq.quantize(small, small_H, grid, act_order=True).quantized
    ),
    "OBQ": lambda grid: obq.quantize(small, small_H, grid).quantized,
}.items():
    start = time.perf_counter()
    lost = [
        evaluate.layer_error(small, rq.dequantize(run(grid)), small_H)
        for grid in ("int4-g32", "int3-g32")
    ]
    rows.append(
        (
            name,
            *(f"{100 * each:.3f} %" for each in lost),
            f"{500 * (time.perf_counter() - start):.1f}",
        )
    )
text.table(("method", "output error, 4 bits", "3 bits", "milliseconds"), rows)

# %% [markdown]
# OBQ chooses its order for every row, and pays for it: $n k^3$ operations against GPTQ's $n k^2 + k^3$. On 32 columns
# that is bearable; on 4096 it is not.
#
# The losses that GPTQ reports are no estimate. Their sum **is** the output error on the (damped) Hessian:

# %%
w = weights[0, "self_attn.q_proj"]
H = inputs[0, "self_attn.q_proj"].hessian.H.astype(np.float64)
r = gptq.quantize(w, H, "int4-g128")
change = w - rq.dequantize(r.quantized)
damped = H + r.damp * np.diag(H).mean() * np.eye(len(H))
Markdown(
    f"Sum of the losses: **{r.losses.sum():.6f}**. Output error per token, from the "
    f"weights: **{0.5 * np.einsum('nk,kl,nl->', change, damped, change):.6f}**."
)

# %% [markdown]
# ## Damping, and what happens without
#
# With fewer tokens than inputs, $H$ has directions that no token ever used. It cannot be inverted, and the Cholesky
# factorization fails:

# %%
few = inputs[0, "self_attn.q_proj"].x[:100]  # 100 tokens for 256 inputs
thin = gptq.hessian(few).astype(np.float64)
try:
    np.linalg.cholesky(thin)
    said = "it worked"
except np.linalg.LinAlgError as problem:
    said = str(problem)
U, used = gptq.inverse_factor(thin, damp=0.0)
Markdown(
    f"NumPy says: *{said}*. refquant raises the damping until the factorization works: "
    f"asked for 0, used **{used:g}**."
)

# %% [markdown]
# **Damping** adds a share of the mean diagonal to the diagonal of $H$. It makes $H$ invertible; more important, it
# keeps GPTQ from trusting correlations that a few tokens show by chance. Below, $H$ comes from few or many tokens, and
# the error is measured on tokens that it never saw.

# %%
x = inputs[0, "self_attn.q_proj"].x
unseen = gptq.hessian(x[2048:])
damps = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
curves = {
    count: [
        evaluate.layer_error(
            w,
            rq.dequantize(
                gptq.quantize(w, gptq.hessian(x[:count]), "int3-g128", damp=d).quantized
            ),
            unseen,
        )
        for d in damps
    ]
    for count in (100, 2048)
}
rounded = evaluate.layer_error(w, rtn.rounded(w, "int3-g128"), unseen)
style.picture(
    figures.damping(damps, curves[100], curves[2048], rounded),
    "Output error on unseen tokens against damping, for a Hessian from 100 and from "
    "2048 tokens, with RTN as a line.",
)

# %%
Markdown(
    f"From 100 tokens and with little damping GPTQ reaches {100 * curves[100][0]:.2f} "
    f"%, RTN {100 * rounded:.2f} %: "
    f"**{'worse than not using it' if curves[100][0] > rounded else 'still better'}**. "
    f"From 2048 tokens it reaches {100 * min(curves[2048]):.2f} %, and the damping "
    "hardly matters."
)

# %% [markdown]
# ## Where the usual explanation slips
#
# It is often said that a column to which the output is not sensitive (large $[H^{-1}]_{jj}$) needs little compensation,
# "because the factors are small". Take two inputs with correlation $\rho$:

# %%
rows = []
for rho in (0.0, 0.5, 0.9, 0.99):
    inverse = np.linalg.inv(np.array([[1, rho], [rho, 1]]))
    rows.append(
        (
            rho,
            f"{inverse[0, 0]:.2f}",
            f"{inverse[1, 0] / inverse[0, 0]:.2f}",
            f"{0.5 / inverse[0, 0]:.3f}",
        )
    )
text.table(
    ("correlation", "[H⁻¹] of the column", "factor on the other", "cost at error 1"),
    rows,
)

# %% [markdown]
# It is the other way round. A large diagonal of $H^{-1}$ means that another input can stand in, and so the factor is
# *large*: the other weight takes over the whole error. What gets small is the cost.

# %%
text.ledger(
    "insensitive_columns_compensate_little",
    "hessian_is_two_xxt",
    "blocks_of_128",
    "minutes_to_hours",
)

# %% [markdown]
# ## Blocks and order
#
# **Blocks** are about speed only: the update of columns far to the right can wait until 128 columns are done, and is
# then one matrix product. **Act-order** takes the columns with the largest inputs first, while the most columns are
# free to make up for them. The groups then follow the new order, and the file needs an index (`g_idx`), unless the
# groups are fitted beforehand (*static groups*).

# %%
wide, wide_H = weights[1, "mlp.down_proj"], inputs[1, "mlp.down_proj"].hessian.H
results = {}
for size in (1, 128, 768):
    start = time.perf_counter()
    results[size] = (
        gptq.quantize(wide, wide_H, "int4-g128", block_size=size).quantized,
        time.perf_counter() - start,
    )
codes = results[128][0].arrays["codes"]
rows = [
    (
        size,
        f"{100 * np.mean(q.arrays['codes'] != codes):.2f} %",
        f"{1000 * seconds:.0f}",
    )
    for size, (q, seconds) in results.items()
]
text.table(("block", "packed codes that differ from 128's", "milliseconds"), rows)

# %% [markdown]
# ## Layer by layer, then the whole model
#
# Every layer of two blocks, at 4 bits in groups of 128:

# %%
grid, names, errors = "int4-g128", [], {"RTN": [], "GPTQ": [], "GPTQ, act-order": []}
for (number, name), each in weights.items():
    if number not in (0, 7):
        continue
    each_H = inputs[number, name].hessian.H
    ordered = gptq.quantize(
        each, each_H, grid, act_order=True, static_groups=True
    ).quantized
    names.append(f"{number} {name.split('.')[1].removesuffix('_proj')}")
    errors["RTN"].append(evaluate.layer_error(each, rtn.rounded(each, grid), each_H))
    errors["GPTQ"].append(
        evaluate.layer_error(
            each, rq.dequantize(gptq.quantize(each, each_H, grid).quantized), each_H
        )
    )
    errors["GPTQ, act-order"].append(
        evaluate.layer_error(each, rq.dequantize(ordered), each_H)
    )
style.picture(
    figures.layers(names, errors),
    "Output error of each layer of blocks 0 and 7: RTN, GPTQ, GPTQ with act-order.",
)

# %% [markdown]
# In a model, each block is calibrated on what the blocks before it, *already quantized*, really send. `models.quantize`
# does that. **Perplexity** is the exponential of the mean surprise for each token of a held-out text (it depends on
# that text, so compare within one notebook only); its change comes with a standard error, taken token by token. **KL**
# is how far the predicted distributions of the next token lie from those of the unquantized model, in the mean over all
# tokens: 0 where they agree.

# %%
held_out = models.data.evaluation("tiny", tokenizer).ids
bos = models.data.first_token(tokenizer)
base = evaluate.score(model, held_out, windows=6, keep=True, bos=bos)
changes, rows = {}, [("as trained", "16.000", f"{base.perplexity:.2f}", "", "")]
for method, options in (
    ("rtn", {}),
    ("gptq", {"act_order": True, "static_groups": True}),
):
    candidate = copy.deepcopy(model)
    report = models.quantize(candidate, method, grid, ids, **options)
    after = evaluate.score(candidate, held_out, windows=6, reference=base, bos=bos)
    changes[method] = after.perplexity_change
    change = f"{after.perplexity_change:+.3f} ± {after.perplexity_change_stderr:.3f}"
    row = (
        f"{method.upper()} {grid}",
        f"{report.bits_per_weight:.3f}",
        f"{after.perplexity:.2f}",
        change,
    )
    rows.append((*row, f"{after.kl_mean:.4f}"))
text.table(("weights", "bits a weight", "perplexity", "change", "KL, nats"), rows)

# %%
Markdown(
    "At the same bits GPTQ wins back "
    f"**{100 * (1 - changes['gptq'] / changes['rtn']):.0f} %** of what RTN loses. "
    f'Whether the rest, {changes["gptq"]:+.2f} here, counts as "near-lossless" depends '
    "on the model: small ones have less to spare."
)

# %%
text.ledger(
    "gptq_is_near_lossless", "gptq_degrades_at_3_bits", "calibration_of_128_examples"
)

# %% [markdown]
# ## Exercises
#
# 1. Nothing makes up for the error of the last column. Why not?
# 2. A layer's inputs are whitened: uncorrelated, all of the same size. What does GPTQ do?
# 3. Why does act-order need an index in the file, and why do static groups need none?
#
# <details><summary>Answers</summary>
#
# 1. No free column is left. It also carries what the columns before have put on it.
# 2. $H$ is a multiple of the identity, so is its inverse; the off-diagonal factors are 0. It is RTN.
# 3. With act-order, columns that share a scale are neighbours in the order of the loop, not in the file, so the file
#    has to say which group a column belongs to. Static groups are fitted on neighbours in the file, before the loop.
#
# </details>
#
# ## Quiz

# %%
from refquant.widgets.quiz import Question, quiz

questions = [
    Question(
        "What does GPTQ use the Hessian for?",
        right=(
            "To move the columns that are not yet quantized so that they make up for the error.",
            "It knows which inputs move together, and so which weights can stand in for which.",
        ),
        wrong=[
            (
                "To train the weights further by gradient descent.",
                "There is no training: each column is visited once.",
            ),
            (
                "To choose the scale of each group.",
                "Scales come from the minimum and maximum of the group, as in RTN.",
            ),
            (
                "To give sensitive layers more bits.",
                "All columns get the same bits; mixes of bits are notebook 5.",
            ),
        ],
    ),
    Question(
        "What does damping do?",
        right=(
            "It keeps H invertible and the compensation modest where few tokens back it.",
            "It adds a share of the mean diagonal to the diagonal.",
        ),
        wrong=[
            ("It makes the scales smaller.", "The scales do not depend on H."),
            (
                "It slows the loop down so that it converges.",
                "The loop has a fixed number of steps, one a column.",
            ),
        ],
    ),
    Question(
        "What do blocks of 128 columns change?",
        right=(
            "The speed, and nothing else but rounding.",
            "Late updates are collected into one matrix product.",
        ),
        wrong=[
            ("Each block gets its own Hessian.", "There is one H for the layer."),
            (
                "Errors stay inside their block.",
                "They move on to the columns after it, all at once when it is done.",
            ),
        ],
    ),
]
quiz(*questions)
