# %% [markdown]
# # 0. Start here
#
# A large language model is a pile of matrices. **Quantization** stores their numbers, the **weights**, in fewer bits: 4
# instead of 16, say. This course shows how that is done for models that *serve* users, what it gains, what it costs,
# and which of the usual statements about it survive a measurement.
#
# | notebook | question |
# | :--- | :--- |
# | [01 Bandwidth](01_bandwidth.ipynb) | Why do fewer bytes make a model faster, and how much? |
# | [02 Rounding](02_rounding.ipynb) | What is a grid, a zero-point, a group? Why are activations harder than weights? |
# | [03 GPTQ](03_gptq.ipynb) | How can other weights make up for a rounding error? |
# | [04 AWQ](04_awq.ipynb) | Which channels matter, and what does scaling them do? |
# | [05 k-quants](05_kquants.ipynb) | What is inside a GGUF block, bit by bit? |
# | [06 INT8, FP8, NF4](06_int8_fp8_nf4.ipynb) | What if the levels are floats, or quantiles, or activations are rounded too? |
# | [07 On disk](07_on_disk.ipynb) | What do the same weights look like as bytes of four file formats? |
# | [08 Kernels](08_kernels.ipynb) | How does a readable reference become a fast kernel? |
# | [09 Choosing](09_choosing.ipynb) | What should I serve, on what, and how fast will it be? |
# | [10 Verify yours](10_verify_yours.ipynb) | Is the implementation that I wrote right? |
#
# Each notebook stands alone. All of them run offline, without a GPU, on `tiny`, a small model that comes with the
# package. Every number is computed in the notebook. Run the cells from top to bottom (Shift+Enter).

# %%
import numpy as np
import torch
from IPython.display import Markdown

import refquant as rq
from refquant import compare, models
from refquant.figures import start as figures
from refquant.figures import style, text
from refquant.models import calibrate, walk

model, tokenizer = models.load("tiny")
count = sum(p.numel() for p in model.parameters())
block = walk.blocks(model)[0]
Markdown(
    f"`tiny`: {count / 1e6:.2f} million weights, {len(walk.blocks(model))} blocks, "
    "each with these matrices: "
    + ", ".join(
        f"`{name}` {layer.out_features} × {layer.in_features}"
        for name, layer in walk.linears(block).items()
    )
    + "."
)

# %% [markdown]
# ## Two uses of quantization
#
# **For training** (QLoRA): the model is frozen in 4 bits only so that it fits beside the training state. Small 16-bit
# matrices, an **adapter**, are added and trained; gradients flow *through* the frozen weights. Precision is bought back
# by the adapter, speed is not the aim.
#
# **For serving**: the model is finished. No gradients, no adapters; the weights are rounded once, and every request
# uses the result. The aim is speed and memory: a model writes one token at a time (**decode**), and reads all of its
# weights for each.
#
# Training, in miniature: a layer is frozen in NF4, a 4-bit format, and an adapter learns to make up for the rounding.
# The adapter is the product $B A$ of two thin matrices, with 8 numbers between input and output.

# %%
name = "self_attn.q_proj"
w = walk.weight_array(walk.linears(walk.blocks(model)[1])[name])
ids = models.data.calibration("tiny", tokenizer, windows=2).ids
inputs = calibrate.layer_inputs(model, ids, ("x",))  # what layers receive on real text
x = torch.from_numpy(inputs[1, name].x)
wanted = x @ torch.from_numpy(w).T
frozen = torch.from_numpy(rq.dequantize(rq.quantize(w, "nf4")))
torch.manual_seed(0)
A = (0.02 * torch.randn(8, w.shape[1])).requires_grad_()
B = torch.zeros(w.shape[0], 8, requires_grad=True)
optimizer, losses = torch.optim.Adam([A, B], lr=0.002), []
for _ in range(100):
    loss = (x @ frozen.T + (x @ A.T) @ B.T - wanted).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
style.picture(
    figures.adapter_training(losses),
    "The adapter's loss falls over 100 steps while the 4-bit weights stay frozen.",
)

# %%
Markdown(
    f"The loss fell to {100 * losses[-1] / losses[0]:.0f} % of where it began. The "
    f"frozen weights never changed; the adapter adds {A.numel() + B.numel():,} numbers "
    f"to {w.size:,} of about 4 bits, and keeps its own multiplication."
)

# %% [markdown]
# Serving, in miniature: one call, no training. From here on the course is about this.

# %%
rows = []
for name in ("int8-row", "int4-g128", "Q4_K", "int3-g128"):
    q = rq.quantize(w, name)
    lost = np.square(rq.dequantize(q) - w).sum() / np.square(w).sum()
    rows.append(
        (
            f"`{name}`",
            f"{q.nbytes:,}",
            f"{q.bits_per_weight:.3f}",
            f"{2 * w.size / q.nbytes:.2f}",
            f"{100 * lost:.3f} %",
        )
    )
text.table(
    (
        "stored as",
        "bytes",
        "bits a weight",
        "times smaller than 16 bits",
        "squared error of the weights",
    ),
    rows,
)

# %% [markdown]
# ## The names in the table
#
# - `int4-g128`: whole numbers of 4 bits, where each **group** of 128 neighbouring weights shares a scale.
# - **RTN** rounds every weight to the nearest level ([02](02_rounding.ipynb)).
# - **GPTQ** rounds a layer column by column, and moves the columns that are still free so that they make up for the
#   error. How far is read from the **Hessian**, a matrix that says which inputs of the layer move together
#   ([03](03_gptq.ipynb)).
# - **AWQ** looks for the **salient** channels, the roughly 1 % of the inputs that are largest, and scales their weights
#   up before rounding ([04](04_awq.ipynb)).
# - **GGUF** is llama.cpp's file. A **k-quant** such as Q4_K is one of its block formats; a **mix** such as Q4_K_M gives
#   each matrix one of them ([05](05_kquants.ipynb)).
# - **LLM.int8** rounds inputs as well, and sets the largest apart; **NF4** has sixteen unevenly spaced levels
#   ([06](06_int8_fp8_nf4.ipynb)).
#
# All but LLM.int8 are **weight-only**: codes are turned back into numbers just before they are multiplied. What the
# model remembers of the text so far, its **KV cache**, is left alone by all of them.
#
# ## The table, measured
#
# Explanations of quantization usually end with a table: method, bits, quality in one word. Here it is with numbers, for
# `tiny`, made by this notebook now. **Perplexity** is the exponential of the mean surprise for each token of a held-out
# text (lower is better). The **change** is against the unquantized model on the same tokens, with its standard error.
# (`refquant compare` makes the full table, on more text.)

# %%
chosen = [
    "RTN int4-g128",
    "GPTQ int4-g128",
    "AWQ int4-g128",
    "GPTQ int3-g128",
    "LLM.int8",
    "NF4",
]
chosen += ["GGUF Q8_0", "GGUF Q5_K_M", "GGUF Q4_K_M"]
table = compare.compare(
    "tiny", chosen, windows=8, calibration_windows=8, progress=False
)
rows = [
    (
        line.label,
        f"{line.bits_per_weight:.2f}",
        f"{line.model_bytes / 1e6:.1f}",
        f"{line.perplexity:.2f}",
        ""
        if line.perplexity_change is None
        else f"{line.perplexity_change:+.3f} ± {line.perplexity_change_stderr:.3f}",
        line.hardware,
    )
    for line in table.lines
]
text.table(
    ("method", "bits a weight", "model, MB", "perplexity", "change", "served on"), rows
)

# %%
style.picture(
    figures.frontier(table),
    "Perplexity against stored bits a weight for nine ways to quantize the bundled "
    "model.",
)

# %%
by = {line.label: line for line in table.lines}
four = [
    by[name].perplexity_change
    for name in ("RTN int4-g128", "GPTQ int4-g128", "AWQ int4-g128")
]
Markdown(
    f"At 4 bits in groups of 128, rounding alone costs {four[0]:+.2f} perplexity, GPTQ "
    f"{four[1]:+.2f}, AWQ {four[2]:+.2f}; 8-bit formats change it by "
    f"{by['GGUF Q8_0'].perplexity_change:+.3f} (Q8_0) and "
    f"{by['LLM.int8'].perplexity_change:+.3f} (LLM.int8). A model this small has "
    "little to spare: large models lose less. And `Q4_K_M` is not 4.5 bits here but "
    f"{by['GGUF Q4_K_M'].bits_per_weight:.2f}, because the mix holds some matrices in "
    "more."
)

# %% [markdown]
# ## What the usual table gets wrong
#
# refquant keeps a ledger of the usual statements. Each is tested by code, and gets a verdict: *holds*, *holds under
# conditions*, *corrected*. `refquant claims` prints all of them. The rows of the usual table:

# %%
text.ledger(
    "table_gptq_int4",
    "bits_of_q4_k_m",
    "bits_of_q8_0",
    "gptq_is_near_lossless",
    "int8_is_faster",
    "nf4_is_four_bits",
)

# %% [markdown]
# ## Exercises
#
# 1. A model of 8 billion weights: how many bytes in 16 bits, in `int4-g128` with 4.156 bits a weight?
# 2. Why does the table give a standard error for the *change* that is far smaller than that of a perplexity itself?
# 3. Both QLoRA and GPTQ hold 4-bit weights. Which of them needs gradients, and for what?
#
# <details><summary>Answers</summary>
#
# 1. 16 · 10⁹ bytes and about 4.16 · 10⁹ bytes, when all weights are in those matrices; embeddings often stay in 16 bits.
# 2. Both models read the same tokens. Hard tokens are hard for both, and that common part cancels in the difference.
# 3. QLoRA, for its adapter. GPTQ uses second derivatives of a layer's error, but trains nothing.
#
# </details>
#
# ## Quiz

# %%
from refquant.widgets.quiz import Question, quiz

questions = [
    Question(
        "Why does weight-only INT4 quantization make decode faster?",
        right=(
            "Each token needs far fewer bytes of weights from memory.",
            "Decode waits for memory; the arithmetic was never the bottleneck at small batches. See notebook 1.",
        ),
        wrong=[
            (
                "INT4 arithmetic runs faster than FP16 arithmetic.",
                "The codes are turned back into 16-bit numbers; the arithmetic stays FP16.",
            ),
            (
                "Fewer layers are executed.",
                "Every layer is executed, with smaller weights.",
            ),
            (
                "The KV cache is four times smaller.",
                "The cache is not touched by weight-only quantization.",
            ),
        ],
    ),
    Question(
        "What is the Hessian for in GPTQ?",
        right=(
            "It tells how the weights not yet rounded should move to make up for an error.",
            "It holds which inputs move together. See notebook 3.",
        ),
        wrong=[
            (
                "It is the gradient for fine-tuning.",
                "Nothing is fine-tuned, and a Hessian is a second derivative.",
            ),
            (
                "It sets the number of bits of each layer.",
                "All layers get the same bits.",
            ),
            (
                "It finds outliers in the weights.",
                "It is computed from inputs; the weights do not enter it.",
            ),
        ],
    ),
    Question(
        "How does AWQ treat the salient 1 % of the channels?",
        right=(
            "It scales them up before rounding and absorbs the inverse into the layer before.",
            "So no weight is kept in 16 bits. See notebook 4.",
        ),
        wrong=[
            (
                "It keeps them in FP16.",
                "That was the observation it started from; mixed storage is what it avoids.",
            ),
            ("It drops them.", "They are the ones that matter most."),
            ("It gives them 8 bits.", "All weights have the same bits."),
        ],
    ),
    Question(
        "What do the k-quant mixes of GGUF gain over one format everywhere?",
        right=(
            "Tensors that hurt more when rounded get more bits, at nearly the same size.",
            "That is what S, M and L choose. The K itself names a block format. See notebook 5.",
        ),
        wrong=[
            (
                "They need no scales.",
                "Each block has a scale, and each sub-block a quantized one.",
            ),
            ("They run on GPUs only.", "They were made for CPUs, and run on both."),
            ("They train the scales.", "Scales come from a search on the weights."),
        ],
    ),
    Question(
        "Which of these needs gradients?",
        right=("QLoRA", "Its adapter is trained; the 4-bit base is frozen."),
        wrong=[
            ("GPTQ", "It solves a least-squares problem, column by column."),
            ("AWQ", "It searches one exponent for each group of layers."),
            ("Q4_K_M", "It looks at the weights only, or at an importance matrix."),
        ],
    ),
]
quiz(*questions)
