"""`refquant plan`: what a model takes and how fast it should be, on one device or split between GPU and CPU."""

import json

from refquant.bandwidth import cache, devices, roofline, shapes, speedup, split, weights, work
from refquant.bandwidth.units import parse_bytes, show_bytes
from refquant.errors import BadInput


def add_arguments(parser) -> None:
    """Add the options of `refquant plan`."""
    parser.add_argument("--model", required=True, help="a known shape (llama-3.1-70b, ...), config.json or its folder")
    parser.add_argument("--type", default="Q4_K_M", help="a mix or format: Q4_K_M, int4-g128, F16, ... (%(default)s)")
    parser.add_argument("--gpu", help="the GPU, or any device that holds the model: rtx-4090, h100, m4-max, ...")
    parser.add_argument("--ram", help="main memory for what the GPU cannot hold: ddr5, ddr4, this-machine")
    parser.add_argument("--gpu-memory", metavar="SIZE", help="such as 24GiB (default: the card's)")
    parser.add_argument("--ram-memory", metavar="SIZE", help="such as 64GiB (default: no limit)")
    parser.add_argument("--gpu-layers", type=int, help="llama.cpp's -ngl (default: the most that fit)")
    parser.add_argument("--context", type=int, default=4096, help="tokens in each sequence (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="sequences (default: %(default)s)")
    parser.add_argument("--cache-type", default="F16", help="type of the KV cache: F16, Q8_0, ... (%(default)s)")
    parser.add_argument("--efficiency", type=float, default=1.0, help="share of peak bandwidth (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def plan(
    model: str,
    storage: str = "Q4_K_M",
    gpu: str | None = None,
    ram: str | None = None,
    gpu_memory: int | None = None,
    ram_memory: int | None = None,
    gpu_layers: int | None = None,
    context: int = 4096,
    batch: int = 1,
    cache_type: str = "F16",
    efficiency: float = 1.0,
) -> dict:
    """Return the plan as plain data: bytes, seconds, tokens per second (keys carry their unit)."""
    shape = shapes.find_shape(model)
    held = weights.store(shape, storage)
    sizes = {
        "tensor_bytes": held.nbytes,
        "file_bytes": held.file_bytes,
        "bits_per_weight": held.bits_per_weight,
        "read_bytes_per_step": held.read_bytes,
        "cache_bytes": cache.cache_bytes(shape, context, batch, cache_type),
        "workspace_bytes": split.workspace_bytes(held),
    }
    result = {"model": shape.name, "storage": storage, "parameters": shape.parameters, "context": context}
    result |= {"batch": batch, "cache_type": cache_type, **sizes}
    result["metadata_measured"] = not held.is_mix or shape.gguf_metadata is not None
    if not gpu and not ram:
        return result
    if gpu and ram:
        answer = split.plan_split(
            held,
            devices.find_device(gpu),
            devices.find_device(ram),
            context,
            batch,
            gpu_layers,
            gpu_memory,
            ram_memory,
            cache_type,
            efficiency=(efficiency, efficiency),
        )
        return result | {
            "gpu": _side(answer.gpu),
            "cpu": _side(answer.cpu),
            "gpu_layers": answer.gpu_layers,
            "most_layers": answer.most_layers,
            "reserve_bytes": split.RESERVE,
            "seconds_per_step": answer.seconds,
            "tokens_per_second": answer.tokens_per_second,
        }
    return result | _alone(held, devices.find_device(gpu or ram), gpu_memory or ram_memory, sizes, result, efficiency)


def _side(side: split.Side) -> dict:
    return {
        "device": side.device.title,
        "blocks": [side.blocks.start, side.blocks.stop],
        "output_here": side.has_output,
        "weight_bytes": side.weight_bytes,
        "cache_bytes": side.cache_bytes,
        "workspace_bytes": side.workspace_bytes,
        "total_bytes": side.nbytes,
        "seconds_per_step": side.seconds,
    }


def _alone(held, device, memory, sizes, asked, efficiency) -> dict:
    """One device holds everything: does it fit, how fast, from which batch on does arithmetic bind."""
    context, batch = asked["context"], asked["batch"]
    step = roofline.step_time(
        work.decode_step(held, context, batch, asked["cache_type"]), device, efficiency=efficiency
    )
    first = roofline.step_time(work.prefill(held, context, batch, asked["cache_type"]), device, efficiency=efficiency)
    room = memory or device.memory
    need = sizes["tensor_bytes"] + sizes["cache_bytes"] + sizes["workspace_bytes"]
    need += split.RESERVE if device.kind == "gpu" else 0
    more = {
        "device": device.title,
        "device_source": device.source,
        "needed_bytes": need,
        "memory_bytes": room,
        "fits": None if room is None else need <= room,
        "seconds_per_step": step.seconds,
        "bound_by": step.bound,
        "tokens_per_second": step.tokens_per_second,
        "prefill_seconds": None if first.arithmetic is None else first.seconds,
    }
    if "fp16" in device.rates:
        limit = roofline.critical_batch(held, device, context, cache=asked["cache_type"])
        more["critical_batch"] = None if limit == float("inf") else limit
        dense = weights.store(held.shape, "F16")
        more["speedup_over_f16"] = [
            {"counted": reason.what, "ratio": reason.ratio}
            for reason in speedup.account(dense, held, device, context=context, batch=batch)[:4]
        ]
    return more


def render(result: dict) -> str:
    """The plan as text; sizes in SI units."""
    lines = [
        f"{result['model']} in {result['storage']}: {result['parameters'] / 1e9:.3f} billion parameters, "
        f"{result['bits_per_weight']:.4f} bits a weight",
        f"{'tensors':<28}{show_bytes(result['tensor_bytes']):>12}",
    ]
    if result["file_bytes"] != result["tensor_bytes"]:
        lines.append(f"{'file, with its tokenizer':<28}{show_bytes(result['file_bytes']):>12}")
    name = f"KV cache, {result['batch']} x {result['context']}, {result['cache_type']}"
    lines += [
        f"{name:<28}{show_bytes(result['cache_bytes']):>12}",
        f"{'read each decode step':<28}{show_bytes(result['read_bytes_per_step']):>12}  (weights)",
    ]
    if "gpu" in result:
        lines += ["", f"{result['gpu_layers']} of {result['most_layers']} layers on the card (-ngl)", _HEADER]
        lines += [_render_side(result[side]) for side in ("gpu", "cpu")]
        seconds = result["seconds_per_step"]
        lines.append(
            f"decode at most {result['tokens_per_second']:.1f} tokens/s ({1e3 * seconds:.1f} ms a step, of which main "
            f"memory {100 * result['cpu']['seconds_per_step'] / seconds:.0f} %)"
        )
    elif "device" in result:
        lines += ["", *_render_alone(result)]
    return "\n".join(lines)


_HEADER = f"{'':<30}{'blocks':>9}{'weights':>11}{'KV cache':>11}{'workspace':>11}{'total':>11}{'ms/step':>9}"


def _render_side(side: dict) -> str:
    start, stop = side["blocks"]
    blocks = f"{start}-{stop - 1}" if stop > start else "none"
    sizes = "".join(f"{show_bytes(side[f'{key}_bytes']):>11}" for key in ("weight", "cache", "workspace", "total"))
    return f"{side['device']:<30}{blocks:>9}{sizes}{1e3 * side['seconds_per_step']:>9.1f}"


def _render_alone(result: dict) -> list[str]:
    fits = {True: "fits", False: "DOES NOT FIT", None: "size of memory not given"}[result["fits"]]
    room = f" of {show_bytes(result['memory_bytes'])}" if result["memory_bytes"] else ""
    lines = [
        f"{result['device']}: needs {show_bytes(result['needed_bytes'])}{room}, {fits}",
        f"decode at most {result['tokens_per_second']:.1f} tokens/s ({1e3 * result['seconds_per_step']:.2f} ms a step, "
        f"bound by {result['bound_by']})",
    ]
    if result["prefill_seconds"] is not None:
        lines.append(f"prefill of {result['context']} tokens at least {1e3 * result['prefill_seconds']:.0f} ms")
    if "critical_batch" in result:
        limit = result["critical_batch"]
        lines.append(
            "decode stays bound by bandwidth at any batch: each sequence's KV cache outweighs its arithmetic"
            if limit is None
            else f"decode is bound by bandwidth up to a batch of {limit:.0f}"
        )
        steps = ", ".join(f"{reason['counted']} {reason['ratio']:.2f}" for reason in result["speedup_over_f16"])
        lines.append(f"over F16, counting one thing after the other: {steps}")
    return lines


def run(args) -> int:
    """Print the plan."""
    if args.gpu_layers is not None and not (args.gpu and args.ram):
        raise BadInput("--gpu-layers splits a model between two: give both --gpu and --ram")
    result = plan(
        args.model,
        args.type,
        args.gpu,
        args.ram,
        args.gpu_memory and parse_bytes(args.gpu_memory),
        args.ram_memory and parse_bytes(args.ram_memory),
        args.gpu_layers,
        args.context,
        args.batch,
        args.cache_type,
        args.efficiency,
    )
    print(json.dumps(result, indent=2) if args.json else render(result))
    return 0
