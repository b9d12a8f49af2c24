# %% [markdown]
# # 7. On disk: one set of weights, four layouts
#
# A method chooses codes and scales. A **format** says which bits of a file hold them. Formats differ where methods do
# not: the same numbers can be written for GPTQ's readers, AWQ's, compressed-tensors' and llama.cpp's. After this
# notebook you can
#
# - find the code of a weight in each of the four layouts, and name the two classic mistakes;
# - say what each format adds to the codes, in bytes;
# - export a quantized model, look into the folder, and load it again with the same numbers.
#
# Terms: a **code** is the small integer that stands for a weight, a **scale** turns codes into weights, a
# **zero-point** is the code that stands for 0. A Linear layer's matrix is [out, in].

# %%
import re
import tempfile
from pathlib import Path

import numpy as np
from IPython.display import Markdown

import refquant as rq
from refquant import inspect_file, inspect_layout, models
from refquant.figures import on_disk as figures
from refquant.figures.style import picture
from refquant.figures.text import ledger, table
from refquant.models import checkpoint, walk
from refquant.models import gguf as gguf_models
from refquant.widgets import on_disk as widgets

model, tokenizer = models.load("tiny")
w = walk.weight_array(walk.linears(walk.blocks(model)[0])["self_attn.q_proj"])
q = rq.quantize(w[:64, :64], "int4-g32-sym")
q

# %% [markdown]
# ## Where is weight [2, 21]?
#
# One grid fits all of them: 4-bit codes, a float16 scale for 32 weights of a row, no zero-point. Below are the half
# bytes around a weight's code in each layout; a box names the weight whose code it holds, as *row, column*.
#
# - **GPTQ** packs eight inputs of one output into a 32-bit word; words run down the inputs.
# - **AWQ** packs eight *outputs* of one input, in the order that one mask and one shift take apart on a GPU.
# - **compressed-tensors** packs eight inputs, words run along the row.
# - **GGUF Q4_0** has no words: bytes of a block hold weights j and j + 16, after the block's scale.
#
# The classic mistakes: to take AWQ's order for 0 to 7, and to read the halves of a GGUF byte as neighbours. Both give
# a model that loads, runs, and talks nonsense.

# %%
widgets.words((64, 64))

# %%
picture(*figures.words((64, 64), 2, 21))

# %% [markdown]
# `inspect_layout` found this without knowing a layout: it writes matrices whose codes spell each weight's number and
# reads the half bytes back. By hand, for GPTQ: 21 is in the word of inputs 16 to 23, sixth from the low end.

# %%
qweight = inspect_layout.tensors(q, "GPTQ")["qweight"]  # [in / 8, out]
code = int(qweight[21 // 8, 2]) >> 4 * (21 % 8) & 15
assert code == rq.ops.unpack(q)["codes"][2, 21]
code

# %% [markdown]
# ## What each adds to the codes
#
# Bytes of this layer, 256 by 256, on the same grid. A symmetric grid has no zero-points, but GPTQ and AWQ files store
# them all the same; GPTQ may also store the group of every input.

# %%
KINDS = {"scales": "scales", "weight_scale": "scales", "qzeros": "zero-points"}
whole = rq.quantize(w, "int4-g32-sym")
parts = {}
for layout in inspect_layout.LAYOUTS:
    sizes = parts[layout] = {"codes": w.size // 2}
    for name, array in inspect_layout.tensors(whole, layout).items():
        kind = KINDS.get(name, "other")
        if name in inspect_layout.CODES.values() or name == "blocks":
            kind = "scales"  # a GGUF block holds its scale beside the codes
            array = array.reshape(-1).view(np.uint8)[w.size // 2 :]
        sizes[kind] = sizes.get(kind, 0) + array.nbytes
picture(*figures.sizes(parts))

# %% [markdown]
# ### The zero-point that is stored less one
#
# The first GPTQ program subtracted one from every zero-point on its way to the file, and every reader adds it back. A
# symmetric file shows it in the bytes. Version 2 of the format stores zero-points as they are; a reader that takes
# one version for the other is off by a whole step everywhere.

# %%
first, second = (
    inspect_layout.tensors(q, name)["qzeros"].ravel()[0] for name in ("GPTQ", "GPTQ v2")
)
_, zero = rq.as_grid(q.format).fit(w[:1, :32])
Markdown(
    f"Version 1: `{int(first) & 0xFFFFFFFF:#010x}`, version 2: "
    f"`{int(second) & 0xFFFFFFFF:#010x}`; the zero-point of a group is {int(zero[0])}."
)

# %%
ledger("int4_g128_is_4_25_bits")

# %% [markdown]
# ## Export, look, reload
#
# Now the whole model: quantized once (round to nearest here, any method will do), saved for four readers. Saving
# rounds nothing again: each folder must give back the same weights, to the last bit.

# %%
models.quantize(model, "rtn", "int4-g32-sym")
expected = {
    name: layer.quantized
    for name, layer in model.named_modules()
    if isinstance(layer, models.QuantLinear)
}
scratch = tempfile.TemporaryDirectory()
folders = {
    name: Path(scratch.name) / name
    for name in ("gptq", "gptq_v2", "awq", "compressed-tensors")
}
rows = []
for name, folder in folders.items():
    models.save(model, folder, name, tokenizer, command="notebook 07")
    back, _ = models.load(str(folder), backend="dense")
    layers = {
        key: layer.quantized
        for key, layer in back.named_modules()
        if isinstance(layer, models.QuantLinear)
    }
    same = all(
        np.array_equal(rq.dequantize(layers[key]), rq.dequantize(value))
        for key, value in expected.items()
    )
    size = sum(path.stat().st_size for path in folder.iterdir())
    rows.append(
        (name, len(layers), f"{size / 1e6:.2f} MB", "equal" if same else "DIFFERENT")
    )
table(("format", "quantized layers", "folder", "weights after reloading"), rows)

# %% [markdown]
# What tells a reader how to read it is `quantization_config` in `config.json`:

# %%
config = checkpoint.folder.quantization_config(folders["gptq"])
config

# %% [markdown]
# `refquant inspect FOLDER` checks such a folder against what it declares. Here a file is damaged on purpose: the
# config says groups of 64.

# %%
path = folders["gptq"] / "config.json"
path.write_text(path.read_text().replace('"group_size": 32', '"group_size": 64'))
found = checkpoint.lint.inspect(folders["gptq"])
print(f"{len(found.problems)} problems; the first: {found.problems[0]}")

# %% [markdown]
# ## Converting without rounding
#
# `refquant convert` moves the numbers of one format into another, or says why the other cannot hold them.

# %%
checkpoint.convert(
    folders["awq"],
    Path(scratch.name) / "converted",
    "compressed-tensors",
    command="notebook 07",
)
again, _ = models.load(str(Path(scratch.name) / "converted"), backend="dense")
layers = {
    key: layer.quantized
    for key, layer in again.named_modules()
    if isinstance(layer, models.QuantLinear)
}
assert all(
    np.array_equal(rq.dequantize(layers[key]), rq.dequantize(value))
    for key, value in expected.items()
)
try:
    fresh, _ = models.load("tiny")
    models.quantize(fresh, "rtn", "int3-g128")
    models.save(fresh, Path(scratch.name) / "three", "awq")
except rq.RefquantError as problem:
    print(f"3 bits as AWQ: {problem}")

# %% [markdown]
# ## A GGUF file
#
# One file with everything: weights, tokenizer, and what the architecture is. The mix decides each tensor's block
# format, embedding included (notebook 5).

# %%
fresh, _ = models.load("tiny")
file = Path(scratch.name) / "tiny.gguf"
gguf_models.export(fresh, tokenizer, file, "Q4_K_M", progress=False)
read = rq.gguf.read(file)
totals = inspect_file.totals(read)
table(
    ("type", "tensors", "weights", "bytes"),
    [
        (k, v["tensors"], f"{v['weights']:,}", f"{v['bytes']:,}")
        for k, v in totals["by_type"].items()
    ],
)

# %%
Markdown(
    f"{file.name}: {totals['bytes']:,} bytes of tensors, "
    f"{totals['bits_per_weight']:.3f} bits a weight, {len(read.metadata)} entries of "
    "metadata, among them `general.architecture` = "
    f"{read.metadata['general.architecture']!r} and "
    f"{len(read.metadata['tokenizer.ggml.tokens']):,} tokens."
)

# %% [markdown]
# And one block of it, byte by byte, as `refquant inspect FILE --block` prints it (there with every bit as well):

# %%
lines = inspect_file.block(read, "blk.0.attn_q.weight", 0).splitlines()[:14]
print("\n".join(re.sub(r" +bits$| +([01]{8} ?)+$", "", line) for line in lines))

# %%
loaded, _ = models.load(str(file), backend="dense")
same = all(
    layer.mlp.up_proj.quantized.to_bytes()
    == read.tensors[f"blk.{i}.ffn_up.weight"].quantized().to_bytes()
    for i, layer in enumerate(loaded.model.layers)
)
assert same
scratch.cleanup()

# %% [markdown]
# ## Exercises
#
# 1. A 4-bit AWQ word is 0x75316420. Which code has output 1, which output 2?
#
# <details><summary>Answer</summary>
# 1 and 2. From the low end the slots hold outputs 0, 2, 4, 6, 1, 3, 5, 7; output 1 is the fifth half byte, a 1, and
# output 2 the second, a 2.
# </details>
#
# 2. A symmetric GPTQ file (version 1) is read as version 2. What happens to the weights?
#
# <details><summary>Answer</summary>
# The zero-point is taken as 7 instead of 8: every weight is one step too large. Perplexity explodes, nothing crashes.
# </details>
#
# 3. Why can compressed-tensors not hold a GPTQ model whose groups do not divide the inputs?
#
# <details><summary>Answer</summary>
# Its scales are [out, groups] with groups of equal size; there is no short last group. Try it with
# <code>refquant convert</code>: the message says so.
# </details>
#
# ## Quiz

# %%
from refquant.widgets.quiz import Question, quiz

questions = [
    Question(
        "What do eight codes of a word of qweight in an AWQ file have in common?",
        right=(
            "They belong to the same input and eight outputs",
            "And they stand in the order 0 2 4 6 1 3 5 7.",
        ),
        wrong=[
            (
                "They belong to the same output and eight inputs",
                "That is GPTQ and compressed-tensors.",
            ),
            ("They share a scale", "Eight outputs have eight scales."),
        ],
    ),
    Question(
        "Two formats hold the same codes and scales. Do the models differ in quality?",
        right=(
            "No: a format is a place for numbers, not a choice of numbers",
            "The weights are equal to the last bit.",
        ),
        wrong=[
            (
                "Yes, GGUF is for CPUs and so less exact",
                "The decoded weights are the same.",
            ),
            (
                "Yes, because AWQ scales its channels",
                "The method may; the layout only stores the result.",
            ),
        ],
    ),
    Question(
        "Why store zero-points for a symmetric grid?",
        right=(
            "The layout has a place for them and readers expect it",
            "GPTQ and AWQ write the middle code.",
        ),
        wrong=[
            ("They improve accuracy", "They are all 8."),
            (
                "A symmetric grid needs them to decode",
                "The middle code is known without a file.",
            ),
        ],
    ),
]
quiz(*questions)
