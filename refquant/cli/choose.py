"""`refquant choose`: which quantization, from where you serve, how much memory, how much loss you accept."""

import json

from refquant.bandwidth import choose, devices, quality
from refquant.bandwidth.units import parse_bytes, show_bytes


def add_arguments(parser) -> None:
    """Add the options of `refquant choose`."""
    parser.add_argument("--model", required=True, help="a known shape (llama-3.1-8b, ...), config.json or its folder")
    parser.add_argument("--memory", required=True, metavar="SIZE", help="such as 24GB or 24GiB")
    parser.add_argument("--hardware", choices=choose.HARDWARE, default="gpu", help="where you serve (%(default)s)")
    parser.add_argument("--loss", choices=tuple(choose.LOSS), default="low", help="what you accept (%(default)s)")
    parser.add_argument("--prefer", choices=tuple(choose.RANKS), default="speed", help="what ranks (%(default)s)")
    parser.add_argument("--context", type=int, default=4096, help="tokens in each sequence (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="sequences (default: %(default)s)")
    parser.add_argument("--gpu", help="the device, for predicted speeds: rtx-4090, h100, m4-max, ...")
    parser.add_argument("--ram", help="main memory, for predicted speeds and a hybrid: ddr5, ddr4, this-machine")
    parser.add_argument("--ram-memory", metavar="SIZE", help="main memory of a hybrid")
    parser.add_argument("--measured", metavar="FILE", help="the JSON of `refquant compare --json`, for its qualities")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args) -> int:
    """Print the options that will do, best first, and why the others will not."""
    device = args.gpu or (args.ram if args.hardware == "cpu" else None)
    answer = choose.choose(
        args.model,
        parse_bytes(args.memory),
        args.hardware,
        args.loss,
        args.context,
        args.batch,
        device=devices.find_device(device) if device else None,
        ram=devices.find_device(args.ram) if args.ram else None,
        ram_memory=args.ram_memory and parse_bytes(args.ram_memory),
        measured=quality.measured(args.measured) if args.measured else None,
        prefer=args.prefer,
    )
    print(json.dumps(as_json(answer), indent=2) if args.json else render(answer))
    return 0


def as_json(answer: choose.Choice) -> dict:
    """The answer as plain data."""

    def option(item: choose.Option) -> dict:
        known = item.quality
        return {
            "option": item.candidate.label,
            "readers": item.candidate.readers,
            "weight_bytes": item.weight_bytes,
            "total_bytes": item.total_bytes,
            "bits_per_weight": item.bits_per_weight,
            "perplexity_increase": known and known.relative,
            "quality_of": known and known.model,
            "quality_source": known and known.source,
            "tokens_per_second": item.tokens_per_second,
            "note": item.candidate.note,
            "rejected": list(item.rejected),
        }

    return {
        "model": answer.shape.name,
        "hardware": answer.hardware,
        "memory_bytes": answer.memory,
        "loss": answer.loss,
        "accepted": [option(item) for item in answer.accepted],
        "rejected": [option(item) for item in answer.rejected],
    }


def render(answer: choose.Choice) -> str:
    """The answer as text."""
    limit = choose.LOSS[answer.loss]
    allowed = "any" if limit == float("inf") else f"perplexity at most {100 * limit:g} % higher"
    lines = [
        f"{answer.shape.name} on {answer.hardware} with {show_bytes(answer.memory)}, loss {answer.loss} ({allowed})",
        "",
        f"{'':<18}{'bits/weight':>12}{'weights':>11}{'in all':>11}{'perplexity':>12}{'tokens/s':>10}  quality of",
    ]
    for item in answer.accepted:
        known = item.quality
        loss = f"{100 * known.relative:+.2f} %" if known else "unknown"
        place = f"{known.model}, {known.source}" if known else "-"
        speed = f"{item.tokens_per_second:.1f}" if item.tokens_per_second else "-"
        lines.append(
            f"{item.candidate.label:<18}{item.bits_per_weight:>12.3f}{show_bytes(item.weight_bytes):>11}"
            f"{show_bytes(item.total_bytes):>11}{loss:>12}{speed:>10}  {place}"
        )
        if item.candidate.note:
            lines.append(f"{'':<18}  {item.candidate.note}")
    if not answer.accepted:
        lines.append("none will do")
    else:
        best = answer.accepted[0].candidate
        lines += ["", f"Take {best.label} ({best.readers})."]
    lines += ["", "Rejected:"]
    lines += [f"{item.candidate.label:<18}{'; '.join(item.rejected)}" for item in answer.rejected]
    return "\n".join(lines)
