"""The words of the model card. All numbers come in as arguments: see `card.py`, which measures them."""

MODULE = "python -m refquant.models.tiny_recipe"
_OPTIONS = "batch peak warmup decay weight_decay every seed"
_DEFAULTS = {"decay": "0.0", "weight_decay": "0.1", "seed": "0"}


def commands(stages: list[dict]) -> str:
    """The command of every stage, from the settings that its run recorded."""
    lines = [f"{MODULE}.gather FOLDER --versions refquant/models/tiny/manifest.json", f"{MODULE}.encode FOLDER MODEL"]
    for i, stage in enumerate(stages):
        line = f"{MODULE}.train FOLDER/tokens RUN{i + 1} --steps {stage['steps']}"
        if stage["best"][0] < stage["steps"]:
            line += f" --stop-at {stage['best'][0]}"
        for name in _OPTIONS.split():
            value = stage["settings"].get(name)
            if value not in (None, _DEFAULTS.get(name)):
                line += f" --{name.replace('_', '-')} {value}"
        lines.append(line + f" --init RUN{i}/model.safetensors" * bool(i))
    runs = " ".join(f"RUN{i + 1}" for i in range(len(stages)))
    return "\n".join([*lines, f"{MODULE}.card FOLDER MODEL {runs} --smollm2 SMOLLM2.gguf"])


def activation_table(rows: list[dict]) -> str:
    """One line a layer, one column for each kind of input: largest channel over median channel."""
    kinds = list(rows[0])
    out = ["| layer | " + " | ".join(kinds) + " |", "| ---: |" + " ---: |" * len(kinds)]
    out += [f"| {i} | " + " | ".join(f"{row[k]['ratio']:.1f}" for k in kinds) + " |" for i, row in enumerate(rows)]
    return "\n".join(out)


def quantized_table(q: dict) -> str:
    """One line for each grid, one column for each method: the rise in perplexity and its standard error."""
    methods = list(dict.fromkeys(r["method"] for r in q["rows"]))
    out = ["| grid | " + " | ".join(methods) + " |", "| --- |" + " ---: |" * len(methods)]
    for grid in dict.fromkeys(r["grid"] for r in q["rows"]):
        cells = [f"+{r['difference']:.4f} ± {r['standard_error']:.4f}" for r in q["rows"] if r["grid"] == grid]
        out.append(f"| {grid} | " + " | ".join(cells) + " |")
    return "\n".join(out).replace("+-", "-")


def tried_table(runs: list[dict]) -> str:
    """One line for each run: its settings and where its validation loss was lowest."""
    out = ["| layers, MLP width | batch | peak rate | decay | weight decay | from | steps | lowest validation loss |"]
    out.append("| --- " + "| ---: " * 4 + "| --- | ---: | ---: |")
    for r in runs:
        s, c = r["settings"], r["config"]
        shape = f"{c['num_hidden_layers']}, {c['intermediate_size']}"
        decay = f"linear over {s['decay']}" if s.get("decay", "0.0") != "0.0" else "cosine"
        start = "stage 1" if s.get("init", "None") != "None" else "nothing"
        last = r["train"][-1][0]
        steps = f"{last} of {r['steps']}" if r.get("steps", last) != last else last
        out.append(
            f"| {shape} | {s['batch']} | {s['peak']} | {decay} | {s['weight_decay']} | {start} | {steps} | "
            f"{r['best'][1]:.4f} (step {r['best'][0]}) |"
        )
    return "\n".join(out)


def _worst(rows):
    return max((row[k]["ratio"], k, i) for i, row in enumerate(rows) for k in row)


def card(runs: dict, manifest: dict, m: dict) -> str:
    """The whole README.md."""
    stages, abandoned = runs["stages"], runs["abandoned"]
    c, parts = stages[-1]["config"], manifest["parts"]
    seen = [s["best"][0] * int(s["settings"]["batch"]) * c["max_position_embeddings"] for s in stages]
    q, ev, licences = m["quantized"], m["evaluation"], sorted({s["licence"] for s in manifest["sources"]})
    four = [100 * r["difference"] / q["perplexity"] for r in q["rows"] if r["grid"] == "int4-g128"]
    minutes = sum(s["seconds"] for s in stages) / 60
    lines = [
        "---\nlicense: apache-2.0\nlanguage: en\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n",
        "# tiny: a small language model that was never quantized\n",
        f"A Llama of {m['parameters'] / 1e6:.2f} million parameters in bfloat16 ({m['bytes'] / 1e6:.1f} MB), trained",
        f"from nothing on {parts['training']['characters'] / 1e6:.0f} MB of English prose from the documentation of "
        f"{len(manifest['sources'])} software packages. It ships",
        "with refquant so that lessons, tests and `refquant compare` have real weights in full precision, offline.\n",
        "| | |\n| --- | --- |",
        f"| layers, width, MLP width | {c['num_hidden_layers']}, {c['hidden_size']}, {c['intermediate_size']} |",
        f"| heads | {c['num_attention_heads']} of {c['hidden_size'] // c['num_attention_heads']}, over "
        f"{c['num_key_value_heads']} key-value heads |",
        f"| vocabulary | {c['vocab_size']}, byte-level BPE with GPT-2's pre-tokenization; embedding tied |",
        f"| context | {c['max_position_embeddings']} tokens |",
        f"| SHA-256 of model.safetensors | `{m['sha256']}` |\n",
        "Every Linear layer's input width is a multiple of 256, so k-quants apply to it without fallback.\n",
        "## What it is good for\n",
        "It writes grammatical English in the manner of software documentation, and reacts to quantization as a",
        "trained model does. It knows nothing reliably: what it says about any program is made up. Greedy text falls",
        "into repetition after a sentence or two, as models of this size do; sample, or pass `repetition_penalty=1.2`.",
        "It was trained on prose only: no code, no dialogue, no other language, hardly a character outside ASCII.\n",
        "## Perplexity\n",
        f'On the evaluation tokens that ship with it (`refquant.models.tiny.tokens("evaluation")`, '
        f"{m['characters_per_token']['evaluation']:.2f} characters a token):\n",
        "| protocol | context | scored tokens | perplexity | standard error | bits per byte |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {name} | {e['context']} | {e['tokens']} | {e['perplexity']:.4f} | {e['standard_error']:.4f} | "
            f"{e['bits_per_byte']:.4f} |"
            for name, e in ev.items()
        ),
        f"\nThe first {m['first_windows']['windows']} windows alone give {m['first_windows']['perplexity']:.4f} "
        "(llama.cpp); a test holds this.",
        "\nHeld-out documents that shared more than a tenth of their 8-word sequences with training were dropped, so",
        "this text is harder than the training text, of which much repeats itself in other words.\n",
        "## Quantized\n",
        f"The rise over {q['perplexity']:.4f} (llama.cpp protocol, first {q['windows']} windows) when the Linear "
        "layers of",
        f"the decoder are quantized by refquant, calibrated on {q['calibration_windows']} windows; ± is the standard "
        "error of the",
        "difference on the same tokens.\n",
        quantized_table(q),
        f"\nSo int4-g128 costs {min(four):.1f} to {max(four):.1f} percent of perplexity here, depending on the method:",
        "a small model has less to spare than the large ones that papers report on.\n",
        "## Text it writes\n",
        "Greedy, and sampled at temperature 0.8 and top-p 0.95 with seed 0; the first of each, not chosen.\n",
    ]
    for s in m["samples"]:
        lines.append(f"**{s['prompt']}**\n")
        lines += [f"- {how}: {' / '.join(s[how].strip().split(chr(10) + chr(10)))}" for how in ("greedy", "sampled")]
        lines.append("")
    worst = _worst(m["activations"])
    lines += [
        "## Activations: few outliers\n",
        "For every Linear layer's input: the largest magnitude of each channel over 4096 calibration tokens, then the",
        "largest channel over the median channel. (q, k and v share an input, gate and up share one.)\n",
        activation_table(m["activations"]),
        f"\nThe highest here is {worst[0]:.1f} ({worst[1]}, layer {worst[2]}).",
    ]
    if other := m.get("activations_smollm2"):
        high = _worst(other)
        lines += [
            f"SmolLM2-135M on the same text reaches {high[0]:.1f} ({high[1]}, layer {high[2]}):\n",
            activation_table(other),
            "\nWhat depends on outliers, such as the mixed decomposition of LLM.int8, has little to do here. Nothing",
            "was planted to change that.",
        ]
    lines += [
        "\n## Training\n",
        "![loss](loss.png)\n",
        f"{' and '.join(f'{s / 1e6:.0f}' for s in seen)} million tokens ({sum(seen) / parts['training']['tokens']:.0f} "
        f"passes over {parts['training']['tokens'] / 1e6:.1f} million) on one {stages[-1]['device']}, "
        f"{minutes:.0f} minutes. AdamW,",
        "betas 0.9 and 0.95, gradients clipped at 1, bfloat16 autocast, float32 master weights. The weights kept are",
        "those with the lowest loss on a validation part that serves such choices only: "
        f"{stages[-1]['best'][1]:.4f} nats a token.",
    ]
    if abandoned:
        lines += [
            f"\nThe first stage was planned as one cosine over {abandoned['steps']} steps. Run to its end, its",
            f"validation loss was lowest at step {abandoned['best'][0]} ({abandoned['best'][1]:.4f}) and rose to "
            f"{abandoned['validation'][-1][2]:.4f}: at low",
            "learning rates it learns the training text by heart. So a second stage started from step "
            f"{stages[0]['best'][0]} and",
            f"brought the learning rate to nothing in {stages[1]['steps']} steps.",
        ]
    if runs["tried"]:
        lines += ["\nOther runs:\n", tried_table(runs["tried"])]
    lines += [
        "\nTo repeat it (the packages come from PyPI and Debian 12):\n",
        "```\n" + commands(stages) + "\n```\n",
        "A GPU's sums have no fixed order, so a repeated run gives a model of the same quality, not the same bytes.\n",
        "## Data\n",
        "| part | documents | tokens | use |\n| --- | ---: | ---: | --- |",
        *(
            f"| {part} | {parts[part]['documents']} | {parts[part]['tokens']} | {use} |"
            for part, use in (
                ("training", "the weights"),
                ("validation", "when to stop, which settings"),
                ("calibration", "shipped (the first 131072): GPTQ, AWQ, importance matrices"),
                ("evaluation", "shipped (the first 131072): perplexity"),
            )
        ),
        "\nWhole documents go to one part by a hash of their name. Paragraphs that occur twice are kept once, over",
        "all parts. `manifest.json` lists every package with version, licence and archive hashes, and the names of the",
        f"held-out documents; `NOTICE` gives attribution. Licences: {', '.join(licences)}.",
        "No share-alike text is in the token files. The weights, like refquant, are under Apache-2.0.",
    ]
    return "\n".join(lines) + "\n"
