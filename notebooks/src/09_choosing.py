# %% [markdown]
# # 9. Choosing: where you serve, how much memory, how much loss
#
# Which quantization to take follows from three questions: **where** the model runs (a GPU, a CPU, or both), **how
# much memory** there is, and **how much loss** you accept. After this notebook you can
#
# - size a model, its KV cache and its workspace, and say what fits;
# - predict the most tokens per second that a split between card and main memory can give;
# - choose a method, and give the reason against every other;
# - say why the gains of stacked techniques do not multiply.
#
# Everything is arithmetic on shapes and on data sheets: no model is loaded, so a 405B model is planned as fast as a
# small one. Terms: **decode** makes one token after the other and reads all weights for each; the **KV cache** keeps
# two vectors for every token, layer and key-value head; **perplexity** is the measure of loss, lower is better.

# %%
import numpy as np
from IPython.display import Markdown

from refquant import claims
from refquant.bandwidth import choose, devices, split, stack, weights
from refquant.bandwidth.units import GIB, show_bytes
from refquant.figures import choosing as figures
from refquant.figures.style import picture
from refquant.figures.text import ledger, table
from refquant.widgets import choosing as widgets

card, memory = devices.find_device("rtx-4090"), devices.find_device("ddr5-5600")
llama = weights.store("llama-3.1-70b", "Q4_K_M")
Markdown(
    f"{llama.shape.name}: {llama.shape.parameters:,} parameters, "
    f"{show_bytes(llama.nbytes)} in {llama.storage} ({llama.bits_per_weight:.3f} bits "
    f"a weight). {card.title}: {show_bytes(card.memory)}, {card.bandwidth / 1e9:.0f} "
    f"GB/s. {memory.title}: {memory.bandwidth / 1e9:.0f} GB/s."
)

# %% [markdown]
# ## A model between a card and main memory
#
# llama.cpp puts as many layers as fit on the card (`-ngl`), the rest stays in main memory. A token passes through the
# layers in order, so **the two sides take turns**: their times add, and the slow side dominates long before it holds
# most of the bytes. The prediction is an upper bound: it divides bytes by the peak bandwidths.

# %%
widgets.planner()

# %%
picture(*figures.plan("llama-3.1-70b", "Q4_K_M", card, memory, 4096, None))

# %% [markdown]
# How much do a few layers more on the card help? Little, until nearly all are there.

# %%
most = split.plan_split(llama, card, memory).gpu_layers
large = devices.find_device("a100-80gb")
plans = [
    split.plan_split(llama, large, memory, gpu_layers=int(n))
    for n in np.linspace(0, llama.shape.layers + 1, 10)
]
picture(*figures.by_layers(plans))

# %%
whole, half = plans[-1], min(plans, key=lambda p: abs(p.gpu_layers - p.most_layers / 2))
Markdown(
    f"With {half.gpu_layers} of {half.most_layers} layers on an {large.title}, "
    f"{half.tokens_per_second:.1f} tokens/s; with all, {whole.tokens_per_second:.1f}. "
    f"The {card.name} holds {most} layers."
)

# %% [markdown]
# ## The three questions
#
# Each candidate is sized, its loss looked up (published values; give your own with `refquant compare --json`), its
# speed predicted. What is rejected is rejected for a reason. Those left are ranked by speed, which is by bytes read:
# the loss that you named is accepted.
#
# Move the memory down until the answer changes; then accept less loss.

# %%
widgets.chooser()

# %%
answer = choose.choose("llama-3.1-8b", 24 * GIB, "gpu", "low", device=card)
picture(*figures.options(answer))

# %% [markdown]
# The reasons, with half of the memory and no loss accepted (`refquant choose` prints such a table, with sources):

# %%
answer = choose.choose("llama-3.1-8b", 12 * GIB, "gpu", "lossless", device=card)
rows = [
    (
        option.candidate.label,
        show_bytes(option.total_bytes) if option.weight_bytes else "-",
        "; ".join(option.rejected)
        or f"will do, {option.tokens_per_second:.0f} tokens/s",
    )
    for option in (*answer.accepted, *answer.rejected)
]
table(("method", "in all", f"in {show_bytes(answer.memory)}"), rows, words=True)

# %% [markdown]
# Two things that the usual table of methods does not say:
#
# - its losses come from models of 7B and more; a small model, or one trained on many tokens a parameter, loses more;
# - bits per weight are those of the **file**: scales, embedding and output matrix count.

# %%
ledger(
    "table_gptq_int4",
    "bits_of_q4_k_m",
    "loss_of_q4_k_m",
    "gptq_is_near_lossless",
    "seventy_b_runs_split",
    "int8_is_faster",
)

# %% [markdown]
# ## The KV cache, paged
#
# The cache grows with every token. A server that reserves room for the longest possible sequence leaves most of it
# empty. **PagedAttention** hands out blocks of a few tokens as they are needed; only the last block of a sequence is
# partly empty. **Grouped-query attention** (GQA) shares keys and values between heads, so each token takes less.
# Quantizing the weights leaves the cache as it is, but makes more room for it.

# %%
dense = weights.store("llama-3.1-8b", "F16")
small = weights.store("llama-3.1-8b", "int4-g128")
room = card.memory - small.nbytes - split.RESERVE
picture(*figures.paging("llama-3.1-8b", room, reserved=4096))

# %%
more = room / (card.memory - dense.nbytes - split.RESERVE)
Markdown(
    f"On an {card.name}, int4-g128 weights leave {show_bytes(room)} for the cache: "
    f"**{more:.1f} times** as much as F16 weights do. That, not the speed of one "
    "sequence, is often the gain of a quantized server."
)

# %% [markdown]
# ## Batching and speculation
#
# **Continuous batching** fills a place in the batch as soon as a sequence ends; a static batch waits for its longest.
# The gain depends on how far the lengths differ, and on nothing else. **Speculative decoding** lets a small model
# draft tokens and checks them in one step of the large one. It trades arithmetic for steps: a gain while bandwidth
# binds, a loss once arithmetic does.

# %%
widgets.batching()

# %%
picture(*figures.batching([64, 128, 256, 512, 1024]))

# %% [markdown]
# ## All at once
#
# The techniques can be combined. The usual explanation calls them orthogonal; that would mean that their gains
# multiply. They do not: each frees memory or arithmetic that another would have used. Below, a full server of
# Llama-3.1-8B; every bar is tokens per second over the same server with none of the five.

# %%
widgets.stacker()

# %%
picture(
    *figures.stacked(
        stack.gains("llama-3.1-8b", "int4-g128", card), f"Llama-3.1-8B on {card.title}"
    )
)

# %%
rows = []
for name in ("l4", "rtx-4090", "a100-80gb", "h100-sxm"):
    found = stack.gains("llama-3.1-8b", "int4-g128", devices.find_device(name))
    rows.append(
        (
            devices.find_device(name).title,
            f"{found.product:.0f}x",
            f"{found.actual:.0f}x",
        )
    )
table(("card", "product of the single gains", "together"), rows)

# %% [markdown]
# ## The ledger of claims
#
# Every quantitative statement of the usual lesson, tested by code that reaches its own verdict. `refquant claims`
# prints it; here are the statements that did not hold as stated.

# %%
found = claims.run()
counts = claims.as_json(found)["verdicts"]
Markdown(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + ".")

# %%
table(
    ("statement", "found"),
    [
        (f"{row.claim.statement} (`{row.claim.name}`)", row.finding.value)
        for row in found
        if row.finding.verdict == "corrected"
    ],
    words=True,
)

# %% [markdown]
# ## Exercises
#
# 1. A model of 32 layers takes 16 ms a step in main memory and would take 1 ms on a card. Half of its layers fit on
#    the card. How much faster does it become?
#
# <details><summary>Answer</summary>
# 8 ms + 0.5 ms instead of 16 ms: 1.9 times, although the card is 16 times as fast. The half that stays decides.
# </details>
#
# 2. Find with the chooser the smallest memory with which Llama-3.1-70B runs on a GPU at low loss. Which method is it,
#    and what would a lossless one need?
#
# <details><summary>Answer</summary>
# Set the model, leave the loss at "low", and move the memory: the figure's dashed line must pass the first blue bar.
# The weights decide; the cache of one sequence at this context is small. The numbers are in the fold below.
# </details>
#
# 3. Your server runs at the largest batch that arithmetic allows. Which of the five techniques will still help?
#
# <details><summary>Answer</summary>
# Continuous batching: it fills places that would be empty. Weight-only quantization and speculation save bytes or
# steps at the price of arithmetic, which is what you lack; more room for sequences does not help either.
# </details>

# %%
found = []
for loss in ("low", "lossless"):
    for size in range(2, 129):
        answer = choose.choose("llama-3.1-70b", size * GIB, "gpu", loss, device=card)
        if answer.accepted:
            found.append(f"{loss}: {answer.accepted[0].candidate.label} in {size} GiB")
            break
Markdown(
    "<details><summary>Answer 2, in numbers</summary>\n\n"
    + "; ".join(found)
    + ".\n\n</details>"
)

# %% [markdown]
# ## Quiz

# %%
from refquant.widgets.quiz import Question, quiz

questions = [
    Question(
        "Half of a model's layers are on the card, half in slow main memory. What is the speed?",
        right=(
            "A little less than twice that of main memory alone",
            "The sides take turns, and the slow half remains.",
        ),
        wrong=[
            (
                "Half way between the two speeds",
                "Times add, speeds do not: the slow side decides.",
            ),
            (
                "That of the card, which computes while memory is read",
                "A layer needs the one before it: no overlap.",
            ),
        ],
    ),
    Question(
        "Why do the gains of quantization, GQA, paging, batching and speculation not multiply?",
        right=(
            "Each uses memory or arithmetic that the others also use",
            "At large batches arithmetic binds for all.",
        ),
        wrong=[
            ("They cannot be combined", "They can, and servers do."),
            (
                "Each needs kernels of its own",
                "True, but that is not what limits the gain.",
            ),
            ("They do multiply: they are orthogonal", "See the last two bars."),
        ],
    ),
    Question(
        "A table says Q4_K_M has about 4.5 bits a weight. What is wrong?",
        right=(
            "4.5 is the block Q4_K; the mix raises some tensors above it",
            "The ledger has the number of the file.",
        ),
        wrong=[
            (
                "Nothing",
                "A file is larger: embedding, output and raised tensors are in it.",
            ),
            (
                "It has 4 bits: the name says so",
                "Scales and minima cost half a bit, raised tensors more.",
            ),
        ],
    ),
]
quiz(*questions)
