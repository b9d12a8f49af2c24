"""Finish the model folder: config files, notices, loss curve, measurements and the model card.

`python -m refquant.models.tiny_recipe.card FOLDER MODEL RUN [RUN ...] [--smollm2 FILE.gguf] [--abandoned RUN]
[--tried HISTORY ...]`, or with `--again MODEL`: measure what MODEL/measured.json lacks, and write the text anew

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

KEPT = ("history", "manifest")  # what the card's text needs besides the measurements


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


def assemble(folder: Path, model: Path, runs: list[Path], abandoned: Path | None, tried: list[Path]):
    """Put weights, configs, loss curve, manifest and notices into the model's folder; return history and manifest."""
    stages = [json.loads((run / "history.json").read_text()) for run in runs]
    unused = json.loads((abandoned / "history.json").read_text()) if abandoned else None
    manifest = json.loads((folder / "manifest.json").read_text())
    shutil.copyfile(runs[-1] / "model.safetensors", model / "model.safetensors")
    write_configs(stages[-1]["config"], model)
    draw(stages, unused, model / "loss.png")
    history = {"stages": stages, "abandoned": unused, "tried": [json.loads(path.read_text()) for path in tried]}
    (model / "history.json").write_text(json.dumps(history))
    for part in PARTS:
        manifest["parts"][part]["names"] = (folder / "text" / f"{part}.names.txt").read_text().split("\n")[:-1]
    for part, entry in manifest["parts"].items():
        entry["tokens"] = (folder / "tokens" / f"{part}.u16").stat().st_size // 2
    (model / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    (model / "NOTICE").write_text(notice(manifest))
    return history, manifest


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("paths", type=Path, nargs="*", metavar="FOLDER MODEL RUN")
    parser.add_argument("--again", type=Path, metavar="MODEL", help="of a finished folder: only measurements and text")
    parser.add_argument("--smollm2", type=Path, help="SmolLM2's GGUF file, for the comparison of activations")
    parser.add_argument("--abandoned", type=Path, help="the first run continued to its end, shown in the picture")
    parser.add_argument("--tried", type=Path, nargs="*", default=[], help="history.json of other runs, for the table")
    args = parser.parse_args()
    if args.again:
        model, runs, manifest = args.again, *(json.loads((args.again / f"{n}.json").read_text()) for n in KEPT)
    elif len(args.paths) >= 3:
        model, runs, manifest = args.paths[1], *assemble(*args.paths[:2], args.paths[2:], args.abandoned, args.tried)
    else:
        parser.error("give FOLDER, MODEL and at least one RUN, or --again MODEL")
    (model / "README.md").write_text(card_text.card(runs, manifest, measure(model, args.smollm2)))


if __name__ == "__main__":
    main()
