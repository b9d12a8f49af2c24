# %% [markdown]
# # 1. Bandwidth: why fewer bytes make decode faster
#
# A language model writes one token at a time (**decode**). For each token it reads *all* of its weights from memory,
# and does two operations with each of them: one multiplication, one addition. Memory cannot deliver numbers nearly as
# fast as the processor can multiply them, so the processor waits. Fewer bytes, less waiting.
#
# After this notebook you can:
#
# - predict the best speed of a model on a device from two numbers;
# - tell when decode is bound by memory, and when it is not;
# - say where a promised factor of 4 goes, line by line.
#
# It needs no network and no GPU. It measures *your* machine.

# %%
import contextlib
import io

import numpy as np
from IPython.display import Markdown

import refquant as rq
from refquant.bandwidth import devices, probe, roofline, speedup, weights, work
from refquant.bandwidth.units import show_bytes
from refquant.bench.cpu import interleave
from refquant.figures import bandwidth as figures
from refquant.figures import style, text

model = weights.store("llama-3.1-8b", "F16")  # sizes only: no weight is loaded
card = devices.find_device("rtx-4090")
step = work.decode_step(model, context=1024)
Markdown(
    f"{model.shape.name} in 16 bits: a step reads {show_bytes(step.bytes)} and does "
    f"{step.flops / 1e9:.1f} · 10⁹ operations. {card.title}: "
    f"{card.bandwidth / 1e9:.0f} · 10⁹ bytes a second, {card.rate('fp16') / 1e12:.0f} "
    "· 10¹² operations a second. Reading takes "
    f"**{1000 * step.bytes / card.bandwidth:.1f} ms**, arithmetic "
    f"**{1000 * step.flops / card.rate('fp16'):.2f} ms**."
)

# %% [markdown]
# ## The roofline
#
# **Arithmetic intensity** is operations for each byte moved. A device has a **ridge**: the intensity at which reading
# and arithmetic take the same time. Left of it memory binds, right of it arithmetic does. In decode with one sequence
# (**batch** 1) each weight is used once: two operations for 2 bytes at 16 bits, for half a byte at 4 bits. The
# **prefill** of a prompt uses each weight once for every token of the prompt, so it lies far to the right.
#
# Below, `int4-g128` stands for codes of 4 bits with a scale for each group of 128 weights (notebook 2).
#
# Move the controls. Which batch crosses the ridge? What does a long **context** (tokens whose keys and values are kept
# in the **KV cache**) do to the blue bars?

# %%
from refquant.widgets import bandwidth as widgets

widgets.roofline()

# %%
figure, said = figures.roofline(
    weights.store("llama-3.1-8b", "int4-g128"), card, batch=1, context=1024
)
style.picture(figure, said)

# %%
rows = []
for name in ("a100-80gb", "h100-sxm", "rtx-4090", "l4"):
    device = devices.find_device(name)
    crossing = [
        roofline.critical_batch(weights.store("llama-3.1-8b", s), device)
        for s in ("F16", "int4-g128")
    ]
    rows.append(
        (device.title, f"{device.ridge():.0f}", *(f"{each:.0f}" for each in crossing))
    )
text.table(
    (
        "device",
        "ridge, operations a byte",
        "batch where arithmetic binds, 16 bits",
        "4 bits",
    ),
    rows,
)

# %% [markdown]
# So "decode is bound by bandwidth" is a statement about small batches. With 4-bit weights the crossing comes much
# earlier: what quantization saves on reading, a large batch can no longer use.

# %%
text.ledger("decode_is_bandwidth_bound", "prefill_is_compute_bound", "decode_dominates")

# %% [markdown]
# ## Measured, on this machine
#
# First the read bandwidth: all cores read a buffer much larger than any cache. Then a large matrix times one vector,
# with 32, 8 and 4 bits a weight (Q8_0 and Q4_0 are block formats of llama.cpp, notebook 5). The **floor** is bytes over
# bandwidth: no program can be faster, on a quiet machine. (Where other work takes its share of the memory, the
# bandwidth may have been measured at a worse moment than the product.)

# %%
here = probe.this_machine()
rng = np.random.default_rng(0)
some = (0.02 * rng.standard_normal((256, 4096))).astype(np.float32)
shape, x = (8192, 4096), rng.standard_normal((1, 4096)).astype(np.float32)
formats = {"F32": "32 bits", "Q8_0": "8 bits (Q8_0)", "Q4_0": "4 bits (Q4_0)"}
matrices = {}
for name in formats:
    blocks = rq.quantize(some, name).arrays["blocks"]
    matrices[name] = rq.Quantized.from_bytes(np.tile(blocks, (32, 1)), name, shape)
Markdown(
    f"{here.title}: **{here.bandwidth / 1e9:.1f} · 10⁹** bytes a second. The matrix "
    f"has {np.prod(shape) / 1e6:.1f} million weights."
)

# %%
products = {
    name: lambda q=q: rq.matmul(x, q, backend="numba") for name, q in matrices.items()
}
with contextlib.redirect_stderr(io.StringIO()):  # the first call compiles, and says so
    for product in products.values():
        product()
seconds = interleave(products, runs=7)  # lower quartile, median, upper quartile
floors = {name: q.nbytes / here.bandwidth for name, q in matrices.items()}
style.picture(
    figures.measured(
        list(formats.values()), list(floors.values()), list(seconds.values())
    ),
    "Floor and measured time of a matrix-vector product at 32, 8 and 4 bits a weight "
    "on this machine.",
)

# %%
base = seconds["F32"][1]
rows = [
    (
        label,
        f"{matrices[name].bits_per_weight:.2f}",
        f"{1000 * floors[name]:.1f}",
        f"{1000 * seconds[name][1]:.1f}",
        f"{floors['F32'] / floors[name]:.2f}",
        f"{base / seconds[name][1]:.2f}",
    )
    for name, label in formats.items()
]
text.table(
    (
        "weights",
        "bits stored",
        "floor, ms",
        "measured, ms",
        "times faster, predicted",
        "measured",
    ),
    rows,
)

# %%
Markdown(
    f"Predicted {floors['F32'] / floors['Q4_0']:.1f} times from 32 to 4 bits, measured "
    f"{base / seconds['Q4_0'][1]:.1f}. At 4 bits this processor reads "
    f"{matrices['Q4_0'].nbytes / seconds['Q4_0'][1] / 1e9:.1f} · 10⁹ bytes a second, "
    f"{100 * matrices['Q4_0'].nbytes / seconds['Q4_0'][1] / here.bandwidth:.0f} % of "
    "what it can: unpacking codes is work, too."
)

# %% [markdown]
# ## Where 4× becomes less
#
# From 16 bits to 4 the ratio is 4. Each line below counts one more fact about Llama-2-7B on an RTX 4090, with one
# sequence and 1024 tokens of context. The last two are what programs reach: a share of the bandwidth, and a fixed time
# for each token, as fitted to published measurements (`refquant.bandwidth.speedup`).

# %%
pair = weights.store("llama-2-7b", "F16"), weights.store("llama-2-7b", "int4-g128")
lines = speedup.account(
    *pair, card, nominal=(16, 4), efficiency=(0.96, 0.96), overhead=0.002
)
style.picture(
    figures.account(lines),
    "; ".join(f"{line.what}: {line.ratio:.2f} times as fast" for line in lines) + ".",
)

# %% [markdown]
# The KV cache is not quantized with the weights. It grows with context and batch, and what the weights save counts for
# less and less:

# %%
contexts = [512, 1024, 2048, 4096, 8192, 16384]
ratios = {}
for batch in (1, 4, 16):
    times = [
        [
            roofline.step_time(work.decode_step(w, c, batch), card).seconds
            for c in contexts
        ]
        for w in pair
    ]
    ratios[f"batch {batch}"] = [slow / fast for slow, fast in zip(*times, strict=True)]
style.picture(
    figures.speedup_over(
        contexts,
        ratios,
        "Llama-2-7B, int4-g128 against 16 bits, RTX 4090 (no memory limit)",
    ),
    "Ratio of decode times against context for batches of 1, 4 and 16: it falls with "
    "both.",
)

# %%
Markdown(
    f"At 512 tokens and batch 1 the roofline allows **{ratios['batch 1'][0]:.2f}** "
    f"times, at 16384 tokens **{ratios['batch 1'][-1]:.2f}**, and with 16 such "
    f"sequences **{ratios['batch 16'][-1]:.2f}**."
)

# %%
text.ledger(
    "int4_moves_a_quarter",
    "int4_is_at_most_four_times",
    "serving_gets_the_full_four",
    "int8_doubles_decode",
    "overhead_explains_the_rest",
)

# %% [markdown]
# ## Exercises
#
# 1. A laptop reads 80 · 10⁹ bytes a second. How many tokens a second can a model of 5 · 10⁹ bytes reach at best?
# 2. A card has twice the bandwidth and twice the arithmetic of another. How do their ridges compare, and what follows
#    for the batch at which arithmetic binds?
# 3. In the widget, find the context at which reading the KV cache of 8 sequences takes as long as reading the 4-bit
#    weights of llama-3.1-8b.
#
# <details><summary>Answers</summary>
#
# 1. 80 / 5 = 16 tokens a second.
# 2. The ridge is their ratio, so it is the same, and so is that batch. Twice the tokens for each sequence, though.
# 3. Between 4096 and 8192 tokens: a token's keys and values take 32 · 2 · 1024 · 2 bytes, 131 kB, times 8 sequences.
#
# </details>
#
# ## Quiz

# %%
from refquant.widgets.quiz import Question, quiz

questions = [
    Question(
        "Why does INT4 weight-only quantization speed up decode?",
        right=(
            "Each token needs a quarter of the bytes, and reading them was the bottleneck.",
            "The arithmetic stays in 16 bits; it was never what took the time.",
        ),
        wrong=[
            (
                "4-bit multiplications are faster than 16-bit ones.",
                "The codes are turned into 16-bit numbers before they are multiplied.",
            ),
            ("The model makes fewer steps.", "One step a token, as before."),
            (
                "It shrinks the KV cache.",
                "The cache keeps its 16 bits; only the room for it grows.",
            ),
        ],
    ),
    Question(
        "A server decodes 512 sequences at once on an A100. What does INT4 change?",
        right=(
            "Little speed: at that batch arithmetic binds. It frees memory.",
            "Each weight that is read is used 512 times; the ridge is far behind.",
        ),
        wrong=[
            (
                "It is four times as fast.",
                "Only where reading weights takes all the time, at small batches.",
            ),
            (
                "Nothing at all.",
                "The weights still take a quarter of the memory, so more sequences fit.",
            ),
        ],
    ),
    Question(
        "What does a long context do to the gain?",
        right=(
            "It shrinks: the KV cache is read as well, and it is not quantized.",
            "The more of the bytes are cache, the less the weights matter.",
        ),
        wrong=[
            (
                "It grows: there is more to read.",
                "More to read, yes, but of what did not get smaller.",
            ),
            (
                "Nothing: decode reads the weights whatever the context.",
                "It reads the cache of all tokens before, too.",
            ),
        ],
    ),
]
quiz(*questions)
