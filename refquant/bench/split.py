"""A model split between two backends: tokens per second measured at several splits, beside two predictions.

A token passes through the blocks in series, so the times of the two sides add (`bandwidth.split`)::

    from the bytes     bytes of each side's weights and cache / peak bandwidth of its device, added
    from the ends      the times measured with no block and with every block on the near side, in proportion

The first is what a planner can say beforehand: the best that could be. The second leaves out how good the kernels are,
and so tests the sum itself. The weights are random where a shape is named: speed does not depend on their values.

What stays unquantized (norms, embedding, output matrix) is float32 and on the far side.

Leaves out: prompts; batches of more than one sequence.
"""

import json
import platform
import time

import numpy as np

from refquant.bandwidth import devices, shapes
from refquant.bandwidth.devices import find_device
from refquant.bandwidth.roofline import step_time
from refquant.bandwidth.shapes import find_shape
from refquant.bandwidth.weights import store
from refquant.bandwidth.work import decode_step
from refquant.errors import BadInput
from refquant.formats.files import replacing

CUDA_NAMES = {
    "H100 PCIe": "h100-pcie",
    "H100": "h100-sxm",
    "H200": "h200",
    "A100": "a100-80gb",
    "4090": "rtx-4090",
    "L4": "l4",
}  # part of the name that the driver gives: name in the table of devices
HEADER = ("near blocks", "tokens/s", "from the ends", "from the bytes", "measured / ends")


def add_arguments(parser) -> None:
    """Add the options of `refquant bench split`."""
    parser.add_argument("--model", default="tiny", help="a model, or a shape such as llama-3.2-1b (random weights)")
    parser.add_argument("--grid", default="int4-g128", help="storage of the blocks' matrices (default: %(default)s)")
    parser.add_argument("--near", default="cuda", help="backend of the first blocks (default: %(default)s)")
    parser.add_argument("--far", default="numba", help="backend of all else (default: %(default)s)")
    parser.add_argument("--blocks", type=int, help="of a shape, only so many blocks (default: all)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens timed (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="interleaved runs (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the measurements with machine and versions")


def run(args) -> int:
    """Measure, print the table, write what was asked for."""
    result = measure(args.model, args.grid, args.near, args.far, args.blocks, args.tokens, args.runs)
    print("  ".join(f"{cell:>15}" for cell in HEADER))
    for row in result["rows"]:
        values = [row[key] for key in ("measured", "from_ends", "from_bytes")]
        cells = [str(row["near_blocks"]), *(f"{value:.1f}" for value in values), f"{values[0] / values[1]:.2f}"]
        print("  ".join(f"{cell:>15}" for cell in cells))
    print(f"{result['model']}, {result['grid']}, {result['near']} + {result['far']}: {result['devices']}")
    if args.json:
        with replacing(args.json) as file:
            file.write((json.dumps(result, indent=1) + "\n").encode())
    return 0


def measure(name, grid, near, far, blocks=None, tokens=32, runs=3) -> dict:
    """Tokens per second of one sequence at five splits, interleaved; medians. Raises what `models.split.place` does."""
    import torch
    import transformers

    from refquant import models
    from refquant.models import split, walk

    if tokens < 2 or runs < 1:
        raise BadInput(f"at least two tokens and one run are needed to time, got {tokens} and {runs}")
    model = random_model(name, blocks) if name in shapes.SHAPES else models.load(name, progress=False)[0]
    models.quantize(model, "rtn", grid, backend=far)
    total = len(walk.blocks(model))
    points = sorted({0, total // 4, total // 2, 3 * total // 4, total})
    prompt = torch.arange(4, 12)[None]

    def seconds(count):
        began = time.perf_counter()
        with torch.inference_mode():
            model.generate(prompt, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
        return time.perf_counter() - began

    times = {point: [] for point in points}
    for turn in range(runs + 1):  # the first compiles and is not counted
        for point in points:
            split.place(model, point, near, far)
            seconds(2)  # moved blocks: first touch, autotuning
            step = (seconds(tokens + 2) - seconds(2)) / tokens
            if turn:
                times[point].append(step)
    median = {point: float(np.median(each)) for point, each in times.items()}
    weights, sides = store(shapes.from_config(model.config, name), grid), {b: _device(b) for b in {near, far}}
    rows = []
    for point in points:
        work = [
            (near, decode_step(weights, 8 + tokens // 2, blocks=range(point), output=False)),
            (far, decode_step(weights, 8 + tokens // 2, blocks=range(point, total), output=True)),
        ]
        bound = sum(step_time(each, sides[backend]).seconds for backend, each in work)
        bound += weights.output_bytes / sides[far].bandwidth  # counted at 2 bytes a weight, kept in 4 here
        ends = median[total] * point / total + median[0] * (1 - point / total)
        speeds = {"measured": 1 / median[point], "from_ends": 1 / ends, "from_bytes": 1 / bound}
        rows.append({"near_blocks": point} | speeds)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": f"{name} ({total} blocks)",
        "grid": grid,
        "near": near,
        "far": far,
        "date": time.strftime("%Y-%m-%d"),
        "devices": ", ".join(f"{b}: {d.title}, {d.bandwidth / 1e9:.0f} GB/s" for b, d in sides.items()),
        "rows": rows,
    }


def random_model(name: str, blocks: int | None = None):
    """Return a Llama of a known shape with small random weights, in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = find_shape(name)
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=blocks or shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02) if parameter.ndim == 2 else parameter.fill_(1)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its tables are not parameters
    return model


def _device(backend: str) -> devices.Device:
    """The device on which a backend computes: this machine's memory as measured, or the card's datasheet."""
    if backend != "cuda":
        return find_device(devices.THIS)
    import torch

    card = torch.cuda.get_device_name()
    known = next((name for part, name in CUDA_NAMES.items() if part in card), None)
    if known is None:
        raise BadInput(f"the bandwidth of {card} is not in the table of devices; known: {', '.join(CUDA_NAMES)}")
    return find_device(known)
