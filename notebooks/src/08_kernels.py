# %% [markdown]
# # 8. Kernels: from the reference to the hardware's limit
#
# A **kernel** is the code that computes one operation fast. For a quantized model the operation that counts is the
# product of one token's activations with a matrix of codes: decoding makes little arithmetic and reads every byte of
# the weights. So there is a **floor**: the bytes that must move, divided by the bandwidth of the memory. After this
# notebook you can
#
# - compute the floor of a product, and say from how many tokens on arithmetic binds instead;
# - climb the rungs from a readable reference to a fused kernel, and measure each;
# - read the recorded measurements of the CPU and GPU kernels, and say what they do *not* show.
#
# It runs without a GPU. Timings are your machine's, of this moment; on a busy machine the rates come out too low.

# %%
import contextlib
import io

import numba
import numpy as np
from IPython.display import Markdown

import refquant as rq
from refquant import ops
from refquant.bandwidth import devices, probe
from refquant.bench import recorded
from refquant.bench.cpu import interleave
from refquant.errors import BackendUnavailable
from refquant.figures import kernels as figures
from refquant.figures.style import picture
from refquant.figures.text import ledger, table
from refquant.widgets import kernels as widgets

shape = (4096, 4096)
need = {
    name: ops.traffic("matmul", shape, name, activation_bytes=2)
    for name in ("F16", "Q8_0", "Q4_K", "int4-g128")
}
h100 = devices.find_device("h100-sxm")
table(
    (
        "weights",
        "bytes of one product",
        "operations a byte",
        f"floor on {h100.title}, µs",
    ),
    [
        (
            n,
            f"{t.bytes:,}",
            f"{t.flops / t.bytes:.2f}",
            f"{1e6 * t.bytes / h100.bandwidth:.2f}",
        )
        for n, t in need.items()
    ],
)

# %% [markdown]
# ## The floor
#
# Few operations a byte: the arithmetic units wait for memory, and fewer bytes mean less time. With more tokens the
# same bytes serve more arithmetic, until that binds; then quantized weights gain nothing. Move the tokens up and
# watch the two lines meet.

# %%
widgets.floor()

# %%
picture(*figures.floor("int4-g128", shape, h100, tokens=64))

# %%
ledger(
    "decode_is_bandwidth_bound",
    "prefill_is_compute_bound",
    "serving_gets_the_full_four",
    "accumulation_in_fp16",
)

# %% [markdown]
# ## Rungs on the CPU
#
# One product y = W x, W in Q4_K (a block format of llama.cpp, notebook 5). The same operation on five rungs, each with
# one idea more:
#
# 1. the NumPy reference: decode all of W to float32, then multiply. It defines the right answer;
# 2. decode with compiled code (Numba), multiply with NumPy: W still goes through memory as float32, twice;
# 3. **fused**: decode in registers and multiply there. W is read once, in the bits that it is stored in;
# 4. fused, with the activations rounded to 8 bits, so that codes multiply as integers;
# 5. rung 3 again, on all cores.

# %%
rng = np.random.default_rng(0)
w = (rng.standard_normal((1024, 4096)) * 0.02).astype(np.float32)
x = rng.standard_normal(4096).astype(np.float32)
ops.load_backend("numba")
eight_bits = ops.find_op("matmul_int8", "Q4_K")
with contextlib.redirect_stderr(io.StringIO()):  # each first call compiles, and says so
    part = rq.quantize(w, "Q4_K", backend="numba")
    rq.dequantize(part, backend="numba")
    rq.matmul(x, part, backend="numba")
    eight_bits(x, part, backend="numba")
# the same rows again and again: larger than a core's caches
blocks = np.tile(part.arrays["blocks"], (16, 1))
large = rq.Quantized("Q4_K", (len(blocks), 4096), {"blocks": blocks})
large

# %%
small = {
    "1 NumPy reference": lambda: rq.matmul(x, part),
    "2 compiled decoder, then product": lambda: (
        x @ rq.dequantize(part, backend="numba").T
    ),
}
fused = {
    "3 fused, one thread": lambda: rq.matmul(x, large, backend="numba"),
    "4 fused, 8-bit activations": lambda: eight_bits(x, large, backend="numba"),
}
cores = numba.get_num_threads()
numba.set_num_threads(1)
scale = len(blocks) // part.shape[0]  # the small matrix is a part of the large one
seconds = {name: scale * times[1] for name, times in interleave(small, 3).items()}
seconds |= {name: times[1] for name, times in interleave(fused, 5).items()}
numba.set_num_threads(cores)
both = interleave({"5 rung 3, all threads": fused["3 fused, one thread"]}, 5)
seconds |= {name: times[1] for name, times in both.items()}

# %%
bandwidth = probe.read_bandwidth(seconds=0.3, buffer=128 * 2**20)
picture(*figures.rungs(seconds, large.nbytes, bandwidth, "Q4_K, one token"))

# %% [markdown]
# Fast and wrong is easy, so every rung is compared with the reference. A product may sum in another order; it may not
# be further from the exact result than twice what a plain float32 loop is. Rung 4 rounds x, which is another
# operation: it is compared with its own definition.

# %%
exact = rq.dequantize(part).astype(np.float64) @ x.astype(np.float64)
# one sum after the other, in float32
plain = np.cumsum(rq.dequantize(part) * x, axis=1, dtype=np.float32)[:, -1]
allowed = 2 * np.abs(plain - exact).max()
error = np.abs(rq.matmul(x, part, backend="numba") - exact).max()
assert error <= allowed
Markdown(f"Largest error of the fused product: {error:.3g}; allowed: {allowed:.3g}.")

# %% [markdown]
# ## What was recorded
#
# `refquant bench cpu` measures all formats and operations beside ggml's own compiled code, taking turns in one run.
# The table is in `kernels/README.md`; here is its picture. Decoders and encoders give the same bytes as ggml. ggml's
# product rounds its activations to 8 bits throughout, so for `matmul` the two do not compute the same thing.

# %%
cpu = recorded.find("Kernels: measured")
picture(*figures.against_ggml(cpu))

# %%
Markdown("> " + cpu.note)

# %% [markdown]
# ## Rungs on a GPU
#
# On a GPU the ladder is longer: neighbouring threads read neighbouring bytes (coalesced loads), a ring of records is
# fetched ahead, tensor cores serve as dot products.
# Each rung is one kernel with one idea more. If measurements are recorded in this checkout, they are drawn here; the
# bar is the time, the mark is the floor.

# %%
gpu = recorded.find("Rungs")
if gpu is None:
    shown = Markdown(
        "No GPU measurement is recorded in this checkout. With a GPU, `refquant bench "
        "gpu` makes one."
    )
else:
    shown = picture(*figures.ladder(gpu))
shown

# %% [markdown]
# With a GPU here, the same product runs on it, and is held to the same bound:

# %%
try:
    y = rq.matmul(x, part, backend="cuda")
    assert np.abs(y - exact).max() <= allowed
    said = f"Largest error of the CUDA product: {np.abs(y - exact).max():.3g}."
except BackendUnavailable:
    said = "No CUDA product on this machine; the reference and Numba need none."
Markdown(said)

# %% [markdown]
# ## Exercises
#
# 1. A product of one token takes three times its floor. Name two causes that are not slow arithmetic.
#
# <details><summary>Answer</summary>
# Too few bytes in flight (loads wait for each other), and bytes read more than once (W written as float32 and read
# again, scales fetched for every row of threads). Launch time counts as well, where the product is small.
# </details>
#
# 2. Why does the bench take copies of the weights in turn?
#
# <details><summary>Answer</summary>
# A matrix that fits the cache is read from there the second time, faster than memory can give. A model's weights do
# not fit, so the time would be one that decoding never sees.
# </details>
#
# 3. With the widget: from how many tokens on does an H100 gain less than twice from int4-g128 over F16?
#
# <details><summary>Answer</summary>
# Choose the device, then move the tokens until the line under the figure says less than 2. There arithmetic binds the
# quantized product while bandwidth still binds F16.
# </details>


# %%
least = {
    name: [figures.least(name, shape, h100, tokens)[0] for tokens in range(1, 1025)]
    for name in ("F16", "int4-g128")
}
few = 1 + int(np.argmax(np.divide(*least.values()) < 2))
Markdown(
    "<details><summary>Answer 3, in numbers</summary>\n\n"
    f"From {few} tokens on.\n\n</details>"
)

# %% [markdown]
# ## Quiz

# %%
from refquant.widgets.quiz import Question, quiz

questions = [
    Question(
        "Why is a fused kernel faster than decoding first?",
        right=(
            "The decoded weights never go through memory",
            "4.5 bits a weight are read, and no float32 is written.",
        ),
        wrong=[
            (
                "It does fewer multiplications",
                "It does the same; memory is what it saves.",
            ),
            ("It rounds less", "Speed is not accuracy: both round to float32."),
        ],
    ),
    Question(
        "At 1024 tokens, what do 4-bit weights gain on a GPU over 16-bit ones?",
        right=("Nothing in the floor: arithmetic binds", "They still save memory."),
        wrong=[
            ("Four times", "That is for one token, and an upper bound even there."),
            (
                "They lose",
                "The floor is the same; a real kernel may lose some time to decoding.",
            ),
        ],
    ),
    Question(
        "When may a product differ from the reference?",
        right=(
            "In the order of its sums, within twice the error of a plain loop",
            "Decoders may not differ at all.",
        ),
        wrong=[
            ("Never", "Then no sum could be done in parallel."),
            ("By one percent", "A scale that is wrong by one percent would pass."),
        ],
    ),
]
quiz(*questions)
