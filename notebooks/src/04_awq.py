# %% [markdown]
# # 4. AWQ: look at the inputs, then scale
#
# GPTQ (notebook 3) repairs rounding errors afterwards. **AWQ** (activation-aware weight quantization) avoids the worst
# of them: the weights that meet large inputs are scaled up before rounding, so that they get finer steps, and the
# inputs are scaled down by the same factor, so that the product stays what it was.
#
# After this notebook you can:
#
# - find the channels that matter, and say how much of the error they cause;
# - explain why a scale helps one channel and hurts the others, and where the best one lies;
# - show that the scales disappear into the layer before, and when they do not.
#
# It needs no network and no GPU.

# %%
import copy

import numpy as np
from IPython.display import Markdown

import refquant as rq
from refquant import evaluate, models
from refquant.figures import awq as figures
from refquant.figures import style, text
from refquant.methods import awq, gptq, rtn
from refquant.models import absorb, calibrate, walk

model, tokenizer = models.load("tiny")
ids = models.data.calibration("tiny", tokenizer, windows=8).ids
inputs = calibrate.layer_inputs(model, ids[:2], ("x",))
layer = walk.linears(walk.blocks(model)[1])["self_attn.q_proj"]
w, x, grid = walk.weight_array(layer), inputs[1, "self_attn.q_proj"].x, "int3-g128"
Markdown(
    f"`q_proj` of block 1: {w.shape[0]} outputs, {w.shape[1]} input channels, {len(x)} "
    f"tokens; grid `{grid}`."
)

# %% [markdown]
# The grid `int3-g128`: codes of 3 bits, and a scale and a zero-point for each **group** of 128 weights of a row
# (notebook 2). **RTN** is plain rounding to the nearest level.
#
# ## Salient channels
#
# An **input channel** is one number of the input vector; the column of weights that it multiplies belongs to it. An
# error in that column reaches the output times the input. So the channels with the largest mean $|x|$ are the
# **salient** ones: not because their weights are large, but because their inputs are.

# %%
style.picture(
    figures.salience(x, w, grid),
    "Mean input magnitude of the channels, sorted; and the share of the error they "
    "cause.",
)

# %%
errors = figures.channel_errors(w, x, grid)
shares = {
    fraction: errors[awq.salient(x, fraction)].sum() / errors.sum()
    for fraction in (0.01, 0.1)
}
Markdown(
    f"The {len(awq.salient(x))} most salient of {w.shape[1]} channels (1 %) cause "
    f"**{100 * shares[0.01]:.0f} %** of this layer's error, the first tenth "
    f"{100 * shares[0.1]:.0f} %."
)

# %% [markdown]
# It is not always so. The same share, for every layer of the model:

# %%
found = {}
for (number, name), each in inputs.items():
    each_w = walk.weight_array(walk.linears(walk.blocks(model)[number])[name])
    lost = figures.channel_errors(each_w, each.x, grid)
    found[number, name] = lost[awq.salient(each.x)].sum() / lost.sum()
values = np.sort(list(found.values()))
Markdown(
    f"Between **{100 * values[0]:.0f} %** and **{100 * values[-1]:.0f} %**, "
    f"{100 * np.median(values):.0f} % in the median "
    'layer. "One percent of the weights matter" is true of some layers, not of each.'
)

# %%
text.ledger("one_percent_is_salient")

# %% [markdown]
# ## Keep them in 16 bits?
#
# The obvious remedy: leave the salient columns in float16 and round the rest. It works, and it costs: bits, and a
# matrix of two kinds that no fast kernel likes. (`mixed.bits_per_weight` counts the columns kept and their numbers.)
# Compare with scaling, which stores nothing more:


# %%
H = gptq.hessian(x)
rounded = rtn.quantize(w, grid)
rows = [
    (
        "RTN",
        f"{rounded.bits_per_weight:.3f}",
        f"{100 * evaluate.layer_error(w, rq.dequantize(rounded), H):.2f} %",
    )
]
for fraction in (0.01, 0.05):
    mixed = awq.keep_salient(w, x, grid, fraction)
    lost = f"{100 * evaluate.layer_error(w, mixed.weights, H):.2f} %"
    rows.append(
        (
            f"{100 * fraction:.0f} % of the columns in float16",
            f"{mixed.bits_per_weight:.3f}",
            lost,
        )
    )
scaled = awq.quantize(w, x, grid, with_clip=False)
lost = evaluate.layer_error(w, rq.dequantize(scaled.quantized) / scaled.scales, H)
rows.append(
    ("AWQ scales", f"{scaled.quantized.bits_per_weight:.3f}", f"{100 * lost:.2f} %")
)
text.table(("weights", "bits a weight", "squared output error"), rows)

# %% [markdown]
# ## What one scale does
#
# Multiply one column by $s$ and divide its input by $s$: $\;w x = (w s)(x / s)$. Before rounding nothing has changed.
# After rounding, the error of $w s$ is still at most half a step, but it meets $x / s$: the channel's error falls by
# $s^2$. That is the whole trick, as long as the step stays the same. Once $w s$ becomes the largest weight of its
# group, the step grows with it, for everybody in the group:

# %%
channel = awq.salient(x)[-1]
scales = [1, 1.5, 2, 3, 4, 6, 8, 16]
of_channel, of_others = [], []
for one in scales:
    s = np.ones(w.shape[1], np.float32)
    s[channel] = one
    lost = figures.channel_errors(w, x, grid, s)
    of_channel.append(lost[channel])
    of_others.append(lost.sum() - lost[channel])
style.picture(
    figures.one_channel(scales, of_channel, of_others),
    "Error of one scaled channel falls with the scale, that of the others rises; "
    "their sum has a minimum between.",
)

# %%
total = np.add(of_channel, of_others)
best = int(np.argmin(total))
Markdown(
    f"Channel {channel} does best at about s = **{scales[best]}**: together "
    f"{100 * total[best] / total[0]:.0f} % of the error at s = 1. At s = 2 its own "
    f"error is {100 * of_channel[2] / of_channel[0]:.0f} % of what it was, that of the "
    f"others {100 * of_others[2] / of_others[0]:.0f} %; at s = 16 that of the others "
    f"is {of_others[-1] / of_others[0]:.1f} times as large."
)

# %%
text.ledger("scaling_is_exact", "scaling_has_an_optimum")

# %% [markdown]
# ## One number for all channels: alpha
#
# A scale for each of hundreds of channels is too much to search. AWQ sets $s_j = \bar a_j^{\,\alpha}$, where
# $\bar a_j$ is the mean $|x|$ of the channel, and searches the one exponent $\alpha$. At 0 every scale is 1: plain RTN.
# At 1 the scaled inputs all have the same size, and the weights take the whole difference.

# %%
from refquant.widgets import awq as widgets

widgets.alpha(w, x[:512], group_size=128)

# %%
few = x[:512]
figure, said = figures.alpha(w, few, grid, 0.3, awq.search([w], few, grid))
style.picture(figure, said)

# %%
text.ledger("alpha_covers_zero_to_one")

# %% [markdown]
# ## Clipping
#
# Scales move the step of a group; **clipping** makes it smaller: cut the largest weights of the group to a limit,
# accept a larger error there, and gain a finer step for all others. Each group has its own best limit, sometimes no
# clipping:

# %%
shares = [1 - i / 20 for i in range(10)]
curves = []
for row in range(0, 100, 20):
    part, seen = w[row : row + 1, :128], few[:, :128]
    top = np.abs(part).max()
    tried = [
        rtn.rounded(np.clip(part, -share * top, share * top), grid) for share in shares
    ]
    curves.append(
        [
            float(np.square(seen @ (each - part).T, dtype=np.float64).mean())
            for each in tried
        ]
    )
style.picture(
    figures.clipping(shares, np.array(curves)),
    "Output error of five groups against the clipping limit, with the minima.",
)

# %%
limits = awq.clip(w, x, grid)
cut = rtn.rounded(awq.clamp(w, limits, grid), grid)
tops = np.maximum.reduceat(np.abs(w), rq.as_grid(grid).starts(w.shape[1]), axis=1)
Markdown(
    f"The search clips **{100 * np.mean(limits < tops):.0f} %** of this layer's "
    "groups; the output error goes from "
    f"{100 * evaluate.layer_error(w, rtn.rounded(w, grid), H):.2f} % to "
    f"{100 * evaluate.layer_error(w, cut, H):.2f} %, without any scale."
)

# %% [markdown]
# ## Where do the inverse scales go?
#
# $x / s$ must be computed by somebody. The input of `q_proj` comes from a norm, whose weight can be divided by $s$ once
# and for all: **absorbed**, it costs nothing. refquant knows which module feeds which, for each block:

# %%
block = walk.blocks(model)[1]
rows = [
    (", ".join(group.layers), group.source, group.inspected)
    for group in absorb.scale_groups(block)
]
text.table(
    ("layers that share an input", "absorbed into", "compared at the output of"),
    rows,
    words=True,
)

# %% [markdown]
# The test of an absorption is that nothing changes. We scale the inputs of q, k and v by large random factors, and look
# at the block's output, before any rounding:

# %%
stream = calibrate.Stream(model, ids[:1])
before = next(iter(stream.run(walk.blocks(model)[0], 0)))
changed = copy.deepcopy(walk.blocks(model)[0])
s = np.exp(np.random.default_rng(0).normal(size=w.shape[1])).astype(np.float32)
absorb.absorb(changed, absorb.scale_groups(changed)[0], s)
after = next(iter(stream.run(changed, 0)))
Markdown(
    f"Scales from {s.min():.2f} to {s.max():.1f}: the output moves by at most "
    f"**{float((after - before).abs().max() / before.abs().max()):.1e}** of its "
    "largest value, float32 rounding."
)

# %% [markdown]
# The table above lacks `o_proj`. Its input comes from `v_proj`, but here (grouped-query attention) two query heads
# share one head of values, and a scale for each input of `o_proj` has no single row of `v_proj` to go to. It gets none.

# %%
text.ledger("scales_are_always_absorbed")

# %% [markdown]
# ## The whole model, against RTN and GPTQ
#
# **Perplexity** is the exponential of the mean surprise for each token of a held-out text (lower is better; it depends
# on that text, so compare within one notebook only); **KL** is how far the predictions of the next token lie from the
# unquantized model's, 0 where they agree.

# %%
held_out = models.data.evaluation("tiny", tokenizer).ids
bos = models.data.first_token(tokenizer)
base = evaluate.score(model, held_out, windows=6, keep=True, bos=bos)
runs = {
    "RTN": ("rtn", {}),
    "AWQ, scales only": ("awq", {"clip": False}),
    "AWQ": ("awq", {}),
    "GPTQ": ("gptq", {"act_order": True, "static_groups": True}),
}
changes, rows = {}, [("as trained", "16.000", f"{base.perplexity:.2f}", "", "")]
for label, (method, options) in runs.items():
    candidate = copy.deepcopy(model)
    report = models.quantize(candidate, method, grid, ids, **options)
    after = evaluate.score(candidate, held_out, windows=6, reference=base, bos=bos)
    changes[label] = after.perplexity_change
    change = f"{after.perplexity_change:+.2f} ± {after.perplexity_change_stderr:.2f}"
    row = (
        f"{label} {grid}",
        f"{report.bits_per_weight:.3f}",
        f"{after.perplexity:.2f}",
        change,
    )
    rows.append((*row, f"{after.kl_mean:.3f}"))
text.table(("weights", "bits a weight", "perplexity", "change", "KL, nats"), rows)

# %%
Markdown(
    f"At 3 bits AWQ wins back {100 * (1 - changes['AWQ'] / changes['RTN']):.0f} % of "
    f"RTN's loss, GPTQ {100 * (1 - changes['GPTQ'] / changes['RTN']):.0f} %, on this "
    "small model and 6 windows of text. Neither is "
    '"near-lossless" here; which is ahead depends on the model and the bits.'
)

# %%
text.ledger("awq_matches_gptq", "awq_is_near_lossless")

# %% [markdown]
# ## Exercises
#
# 1. Why does AWQ look at the mean $|x|$, and not at the weights, to find salient channels?
# 2. All channels of a group are scaled by the same $s$. What changes?
# 3. Why can the input scales of `down_proj` be absorbed into `up_proj`, and not into `gate_proj`?
#
# <details><summary>Answers</summary>
#
# 1. The rounding error of a weight depends on its group's step, so it is about the same for all columns. What differs is
#    the input that it meets.
# 2. Nothing: the step grows by $s$, the inputs shrink by $s$. Only differences between the channels of a group count,
#    which is why the scales are normalised.
# 3. The input is SiLU(gate) · up, where SiLU is the block's curved activation function. A factor on `up` passes
#    straight through the product; SiLU bends a factor on `gate`.
#
# </details>
#
# ## Quiz

# %%
from refquant.widgets.quiz import Question, quiz

questions = [
    Question(
        "How does AWQ treat the salient channels?",
        right=(
            "It scales them up before rounding and their inputs down by as much.",
            "They get finer steps relative to their size, and nothing has to be stored in 16 bits.",
        ),
        wrong=[
            (
                "It keeps them in 16 bits.",
                "That works too, but makes a matrix of two kinds; AWQ was made to avoid it.",
            ),
            ("It gives them more bits.", "All weights keep the same bits."),
            ("It retrains them.", "Nothing is trained; one exponent is searched."),
        ],
    ),
    Question(
        "Why not scale by a huge factor?",
        right=(
            "The scaled weight stretches the step of its whole group.",
            "The channel keeps gaining, all others lose; the sum has a minimum.",
        ),
        wrong=[
            (
                "The product would change.",
                "It would not: w s times x / s is w x for every s.",
            ),
            (
                "Scales must stay below 16.",
                "No such rule; float16 would hold far more.",
            ),
        ],
    ),
    Question(
        "What does an absorbed scale cost when the model runs?",
        right=("Nothing.", "It is in the weights of the norm or layer before."),
        wrong=[
            (
                "One division for each input.",
                "Only where it cannot be absorbed; then AWQ leaves it out.",
            ),
            ("16 bits for each channel.", "It is not stored separately."),
        ],
    ),
]
quiz(*questions)
