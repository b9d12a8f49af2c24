"""Finish the model folder: config files, notices, loss curve, measurements and the model card.

`python -m refquant.models.tiny_recipe.card FOLDER MODEL RUN [RUN ...] [--smollm2 FILE.gguf] [--abandoned RUN]
[--tried HISTORY ...]`

FOLDER is what `gather` and `encode` wrote, MODEL the model's folder, which holds the tokenizer and the tokens already,
RUN what `train` wrote: several where each started from the weights of the one before it. Every number in the card is
computed here and kept in MODEL/measured.json; none is typed.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

from refquant.models.tiny_recipe import card_text
from refquant.models.tiny_recipe.measure import PARTS, measure


def write_configs(config: dict, model: Path):
    """Write config.json and generation_config.json as transformers reads them."""
    from transformers import GenerationConfig, LlamaConfig

    ends = {"bos_token_id": 0, "eos_token_id": 0}
    whole = LlamaConfig(
        **config, **ends, tie_word_embeddings=True, dtype="bfloat16", architectures=["LlamaForCausalLM"]
    )
    whole.save_pretrained(model)
    GenerationConfig(**ends, pad_token_id=0).save_pretrained(model)


def draw(stages: list[dict], abandoned: dict | None, path: Path):
    """The loss curve as a picture: the stages one after the other, each from the step the next one started at."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    rate = axes.twinx()
    offset, low = 0.0, np.inf
    if abandoned:
        held = np.array(abandoned["validation"])
        axes.plot(held[:, 1] / 1e6, held[:, 2], lw=1, color="C1", alpha=0.4, label="validation, had stage 1 gone on")
    for i, stage in enumerate(stages):
        train, held = (np.array([p for p in stage[k] if p[0] <= stage["best"][0]]) for k in ("train", "validation"))
        tokens = offset + train[:, 1] / 1e6
        labels = [None, None] if i else ["training (mean since the point before)", "validation"]
        axes.plot(tokens, train[:, 2], lw=0.8, color="C0", label=labels[0])
        axes.plot(offset + held[:, 1] / 1e6, held[:, 2], lw=1.8, color="C1", label=labels[1])
        rate.plot(tokens, train[:, 3], lw=0.8, color="grey", ls=":")
        offset, low = tokens[-1], min(low, held[:, 2].min(), train[:, 2].min())
    axes.set(xlabel="million tokens seen", ylabel="nats per token", ylim=(low - 0.1, low + 1.4), xlim=(0, None))
    rate.set(ylabel="learning rate (dotted)", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def notice(manifest: dict) -> str:
    """Attribution for the token files: every package that text came from, with its licence."""
    lines = [
        "The token ids in tokens.npz encode passages of the documentation of some of the packages below, cut and",
        "cleaned. Each passage stays under its package's licence and copyright, which the package itself states.",
        "The weights in model.safetensors were trained on text of all of them.",
        "",
    ]
    for s in manifest["sources"]:
        name = s["source"] + " " + s["archives"][0]["version"]
        lines.append(f"{name:<60} {s['licence']}")
    return "\n".join(lines) + "\n"


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--smollm2", type=Path, help="SmolLM2's GGUF file, for the comparison of activations")
    parser.add_argument("--abandoned", type=Path, help="the first run continued to its end, shown in the picture")
    parser.add_argument("--tried", type=Path, nargs="*", default=[], help="history.json of other runs, for the table")
    args = parser.parse_args()
    stages = [json.loads((run / "history.json").read_text()) for run in args.runs]
    abandoned = json.loads((args.abandoned / "history.json").read_text()) if args.abandoned else None
    manifest = json.loads((args.folder / "manifest.json").read_text())
    shutil.copyfile(args.runs[-1] / "model.safetensors", args.model / "model.safetensors")
    write_configs(stages[-1]["config"], args.model)
    draw(stages, abandoned, args.model / "loss.png")
    tried = [json.loads(path.read_text()) for path in args.tried]
    runs = {"stages": stages, "abandoned": abandoned, "tried": tried}
    (args.model / "history.json").write_text(json.dumps(runs))
    for part in PARTS:
        manifest["parts"][part]["names"] = (args.folder / "text" / f"{part}.names.txt").read_text().split("\n")[:-1]
    for part, entry in manifest["parts"].items():
        entry["tokens"] = (args.folder / "tokens" / f"{part}.u16").stat().st_size // 2
    (args.model / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    (args.model / "NOTICE").write_text(notice(manifest))
    measured = measure(args.model, args.smollm2)
    (args.model / "README.md").write_text(card_text.card(runs, manifest, measured))


if __name__ == "__main__":
    main()
