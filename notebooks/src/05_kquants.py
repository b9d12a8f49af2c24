# %% [markdown]
# # 5. k-quants: what the bytes of a GGUF file mean
#
# llama.cpp's files store weights in **blocks**: small records that hold the codes of 32 or 256 neighbouring weights
# of a row together with the numbers that turn those codes back into weights. A **k-quant** is such a block with two
# levels of scales. After this notebook you can
#
# - point at the bits of any weight of any block format, and work out its value by hand;
# - say what a k-quant saves, and how its search picks scales;
# - tell a *format* (Q4_K) from a *mix* (Q4_K_M), and read the map of a mix;
# - say what an importance matrix changes.
#
# You need the idea of a scale and a zero-point (notebook 2). Nothing is downloaded.

# %%
import numpy as np
from IPython.display import Markdown

import refquant as rq
from refquant import bandwidth, evaluate, inspect_block, models
from refquant.figures import kquants as figures
from refquant.figures.style import picture
from refquant.figures.text import ledger, table
from refquant.ggml_types import ggml_type
from refquant.methods import mixes
from refquant.models import mix, walk
from refquant.models.gguf import importance
from refquant.widgets import kquants as widgets

model, tokenizer = models.load("tiny")
layers = {
    f"{i}.{name}": layer
    for i, block in enumerate(walk.blocks(model))
    for name, layer in walk.linears(block).items()
}
w = walk.weight_array(layers["3.mlp.down_proj"])
w.shape

# %% [markdown]
# ## Why two levels of scales
#
# A scale that serves few weights fits them well, but it has to be stored. Give every 16 weights a float16 scale of
# their own and it costs 16 / 16 = 1 bit a weight. A k-quant makes a **super-block** of 256 weights, gives each
# **sub-block** of 16 or 32 a small integer as its scale, and one float16 `d` scales all those integers. Q2_K, Q4_K
# and Q5_K treat a minimum the same way (`dmin`), so that a sub-block need not lie around zero.
#
# The last column is the squared error of this layer's weights, as a share of the weights' own squares.

# %%
rows = []
for name in inspect_block.BLOCK_FORMATS:
    kind, back = ggml_type(name), rq.dequantize(rq.quantize(w, name))
    share = (
        np.square(back - w, dtype=np.float64).sum()
        / np.square(w, dtype=np.float64).sum()
    )
    fields = ", ".join(
        f"{field} {size}" for field, _, size in inspect_block.layout(name)
    )
    rows.append(
        (
            name,
            kind.weights,
            kind.bytes,
            f"{kind.bits_per_weight:.4f}",
            fields,
            f"{100 * share:.3f} %",
        )
    )
table(
    (
        "format",
        "weights",
        "bytes",
        "bits a weight",
        "fields and their bytes",
        "squared error",
    ),
    rows,
)

# %% [markdown]
# TQ1_0 and TQ2_0 hold only −d, 0 and +d. They are meant for models trained that way; on this one they lose most of
# it.
#
# ## The bits of one weight
#
# Choose a format and a block of this layer, then click a **weight**: the coloured bits are those that it is made of,
# and the box shows the arithmetic. Click a **bit** to see the weights that it can change. From the keyboard: Tab to
# the weights or the bits, then the arrow keys.
#
# Things to look for:
#
# - Q4_0: weights 0 and 16 share a byte. Neighbours do not: codes lie in **planes**, so that one shift and one mask
#   give a vector unit 16 codes in order. Reading the two halves of a byte as neighbours is the commonest mistake
#   about GGUF.
# - Q4_K: sub-scales 4 to 7 lie in two places, four bits here and two there.
# - Q5_K, Q6_K, Q3_K: the high bits of the codes have an array of their own.
# - TQ1_0: five weights are digits in base 3 of one byte, so every bit of it belongs to all five.

# %%
widgets.BlockExplorer(w, "Q4_K", weight=200)

# %% [markdown]
# The same as a fixed figure: weight 200 of the first block in Q4_K.

# %%
block = rq.quantize(w[:1], "Q4_K").arrays["blocks"][0, :144]
picture(*figures.block_bits(block, "Q4_K", 200))

# %% [markdown]
# And in code. `inspect_block` knows no layout: it flips every bit and watches what the decoder reads. The tests flip
# the bits once more, and ask ggml's own decoder which weights changed.

# %%
found = inspect_block.weight(block, "Q4_K", 200)
for part in found.parts:
    print(
        f"{part.label:<12} bytes {part.bytes!s:<10} {part.binary:>16} -> {part.value:g}"
    )
print(*found.steps, sep="\n")
assert found.value == rq.dequantize(rq.quantize(w[:1], "Q4_K"))[0, 200]

# %% [markdown]
# ## How the search picks a scale
#
# The obvious scale sends the smallest weight to code 0 and the largest to the last code. ggml tries more: it
# stretches the range a little, rounds, and for the codes that come out takes the **best** scale and minimum, which
# least squares gives in closed form. It keeps whatever has the smallest weighted squared error (in Q4_K without
# importance, a weight x counts with the root mean square of its sub-block plus |x|). Only afterwards are the scales
# themselves rounded.

# %%
widgets.search(w[0])

# %%
picture(*figures.search(w[0, 32:64], 21))

# %% [markdown]
# What the search is worth on the layer: the plain fit (0 trials) against all 21, before the scales are rounded.

# %%
sub_blocks = w.reshape(-1, 32).T  # [32, count]
first, last = (figures.kept(sub_blocks, trials)[3] for trials in (0, 21))
Markdown(
    f"Over {len(first):,} sub-blocks, 21 trials leave "
    f"**{100 * last.sum() / first.sum():.1f} %** of the first guess's error; "
    f"{100 * np.mean(last < first):.0f} % of the sub-blocks gained."
)

# %% [markdown]
# ## Formats and mixes
#
# Q4_K is a block format. **Q4_K_M is a mix**: a rule that gives every tensor of a model its format. Most matrices get
# the base type, a few roles get more bits. The usual explanation says that the K means different precisions for
# different layers. It does not: it names the super-block, and the letters S, M, L name the mix.

# %%
llama = bandwidth.shapes.find_shape("llama-3.1-8b")
qwen = bandwidth.shapes.find_shape("qwen2.5-7b")
plans = {
    "Llama-3.1-8B": lambda name: mixes.plan(llama.tensors(), name, llama.mix_model),
    "Qwen2.5-7B": lambda name: mixes.plan(qwen.tensors(), name, qwen.mix_model),
    "tiny": lambda name: mix.plan(model, name),
}
widgets.mix_map(plans)

# %%
picture(*figures.mix_map(plans["Llama-3.1-8B"]("Q4_K_M"), "Llama-3.1-8B, "))

# %%
ledger(
    "k_means_layers",
    "s_m_l_are_group_sizes",
    "q4_k_m_raises_q_and_k",
    "bits_of_q4_k_m",
    "bits_of_q2_k",
)

# %% [markdown]
# ## The importance matrix
#
# The search weighs each weight's error. Told how large the activations are that meet each column (the **importance**,
# or imatrix: the mean square of every input, measured on text), it spends its precision where outputs are made. No
# weight is scaled and the format does not change; only the choice of scales and codes does.
#
# Below: every matrix of `tiny` in two formats, without and with importance; the error is that of the layer's output.

# %%
text = models.data.calibration("tiny", tokenizer, windows=4)
matrix = importance(model, text.ids, progress=False)
errors = {name: ([], []) for name in ("Q2_K", "Q4_K")}
for key, layer in layers.items():
    gguf_name = mix.architectures.gguf_name(
        f"model.layers.{key}.weight",
        mix.architectures.of_config(model.config.to_dict()),
    )
    weights = walk.weight_array(layer)
    columns = matrix.means(gguf_name, weights.shape[1])[0]
    for name, pair in errors.items():
        for values, told in zip(pair, (None, columns), strict=True):
            back = rq.dequantize(rq.quantize(weights, name, importance=told))
            values.append(evaluate.layer_error(weights, back, np.diag(columns)))
picture(*figures.importance(errors))

# %% [markdown]
# The same on the whole model, in the mix Q2_K. **Perplexity** is the exponential of the mean surprise for each token of
# a held-out text (lower is better; it depends on that text, so compare within one notebook only). The change is
# measured token by token against the unquantized model; its standard error stands beside it.

# %%
held_out = models.data.evaluation("tiny", tokenizer).ids
reference = evaluate.score(model, held_out, windows=4, keep=True)
lines = [("unquantized", "16.000", f"{reference.perplexity:.2f}", "-")]
for label, told in (("Q2_K", None), ("Q2_K with importance", matrix)):
    candidate, _ = models.load("tiny")
    report = mix.quantize_mix(candidate, "Q2_K", importance=told)
    scores = evaluate.score(candidate, held_out, windows=4, reference=reference)
    change = f"{scores.perplexity_change:+.2f} ± {scores.perplexity_change_stderr:.2f}"
    lines.append(
        (label, f"{report.bits_per_weight:.3f}", f"{scores.perplexity:.2f}", change)
    )
table(("tiny", "bits a weight", "perplexity", "change"), lines)

# %% [markdown]
# ## Exercises
#
# 1. Q6_K has no minimum. How many bits a weight would one 8-bit minimum for every 16 weights, and a float16 `dmin`
#    for the block, add? Would you pay it?
#
# <details><summary>Answer</summary>
# 8/16 + 16/256 = 0.5625 bits. With 64 levels the codes that a lopsided sub-block wastes cost far less than that:
# another whole bit on the codes would halve the step for every weight.
# </details>
#
# 2. In Q4_K, which byte holds the code of weight 33, and which half of it? Predict, then look.
#
# <details><summary>Answer</summary>
# Codes start at byte 16 in planes of 32: weights 0 to 31 take the low halves of bytes 16 to 47, weights 32 to 63 the
# high halves of the same bytes. Weight 33 is the high half of byte 17.
# </details>
#
# 3. In Q4_K, choose the highest bit of `d`. How many weights does it change, and what happens to them?
#
# <details><summary>Answer</summary>
# It is the sign of a float16: scale times code changes its sign for all 256 weights, while the minimum stays. A code
# of 0 hides it, so a single block may show fewer.
# </details>
#
# ## Quiz

# %%
from refquant.widgets.quiz import Question, quiz

questions = [
    Question(
        "What does the K in Q4_K stand for?",
        right=(
            "A block of 256 weights whose sub-blocks have quantized scales",
            "Two levels of scales: that is all.",
        ),
        wrong=[
            (
                "Different precisions for different layers",
                "That is what a mix such as Q4_K_M does, with any formats.",
            ),
            (
                "A larger group size than Q4_0",
                "Sub-blocks have 16 or 32 weights, Q4_0 has 32.",
            ),
            (
                "Codes from k-means clustering",
                "The levels of Q4_K are evenly spaced. IQ4_NL has a table of uneven ones.",
            ),
        ],
    ),
    Question(
        "Two codes of 4 bits share a byte of Q4_0. Which weights are they?",
        right=(
            "Weight j and weight j + 16",
            "Planes of 16: low halves first, then high halves.",
        ),
        wrong=[
            (
                "Weight 2j and weight 2j + 1",
                "That is the commonest mistake: the file would decode to shuffled weights.",
            ),
            (
                "Weight j and weight 31 - j",
                "Nothing is mirrored; both halves count upwards.",
            ),
        ],
    ),
    Question(
        "What does an importance matrix change in a Q4_K file?",
        right=(
            "The choice of scales, minima and codes",
            "The search weighs errors by it. Bytes and speed stay the same.",
        ),
        wrong=[
            (
                "The format of the sensitive layers",
                "The mix decides that, by the tensor's role.",
            ),
            (
                "It is stored and multiplied in at run time",
                "Nothing of it is in the file.",
            ),
            (
                "It scales salient columns up, as AWQ does",
                "No column is scaled; only errors are weighed.",
            ),
        ],
    ),
]
quiz(*questions)
