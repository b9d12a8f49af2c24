"""`refquant quantize`: a model to a GGUF file, or to a checkpoint folder that serving engines load."""

import argparse
import json
import os
import sys
from pathlib import Path

from refquant.errors import BadInput

# What a method is written as when neither is said: the checkpoint format, and the grid. The options are those with
# which `refquant compare` measures the method.
DEFAULTS = {
    "gptq": ("gptq", "int4-g128-sym"),
    "rtn": ("gptq", "int4-g128-sym"),
    "awq": ("awq", "int4-g128"),
    "fp8": ("compressed-tensors", "fp8-e4m3"),
    "nf4": ("bitsandbytes", "nf4"),
    "llm-int8": ("bitsandbytes", "llm-int8"),
}
GRID_OF_FORMAT = {("fp8", "fp8"): "fp8-e4m3-block"}  # by method and format, where it is not the method's own
OPTIONS = {
    "act_order": "gptq",
    "static_groups": "gptq",
    "damp": "gptq",
    "true_sequential": "gptq",
    "clip": "awq",
}
TO_FILE = ("type", "imatrix", "pure", "plan")
TO_FOLDER = (
    "method",
    "grid",
    "format",
    "calibration",
    "calibration_windows",
    "context",
    "dtype",
    "device_map",
    *OPTIONS,
)


def add_arguments(parser) -> None:
    """Add the options of `refquant quantize`. Those of one kind of output are None, or False, unless given."""
    parser.add_argument("model", help="a name (see `refquant models`), folder, GGUF file or hub id")
    parser.add_argument("out", help="OUT.gguf, or a folder")
    to_file = parser.add_argument_group("to a GGUF file")
    to_file.add_argument("--type", help="a mix or a block format (default: Q4_K_M)")
    to_file.add_argument("--imatrix", metavar="FILE", help="importance matrix, in either of llama.cpp's forms")
    to_file.add_argument("--pure", action="store_true", default=None, help="the same type for every matrix")
    to_file.add_argument(
        "--plan", action="store_true", default=None, help="print the type of every tensor, and write nothing"
    )
    to_folder = parser.add_argument_group("to a checkpoint folder")
    to_folder.add_argument("--method", help=f"{', '.join(DEFAULTS)} (default: gptq)")
    to_folder.add_argument("--grid", help="such as int4-g128, fp8-e4m3-block (default: the method's)")
    to_folder.add_argument(
        "--format", help="gptq, gptq_v2, awq, compressed-tensors, fp8, bitsandbytes (default: the method's)"
    )
    to_folder.add_argument(
        "--calibration", metavar="FILE", help="calibration text (default: standard library docstrings)"
    )
    to_folder.add_argument("--calibration-windows", type=int, help="default: 32")
    to_folder.add_argument("--context", type=int, help="tokens in a window (default: 512)")
    to_folder.add_argument("--dtype", help="of what stays unquantized (default: float16)")
    to_folder.add_argument("--device-map", help="spread the model over several devices by Accelerate, such as auto")
    to_folder.add_argument(
        "--act-order", action=argparse.BooleanOptionalAction, help="gptq: columns by falling importance (default: yes)"
    )
    to_folder.add_argument(
        "--static-groups",
        action=argparse.BooleanOptionalAction,
        help="gptq: groups of neighbouring columns, so that the file needs no g_idx (default: yes)",
    )
    to_folder.add_argument("--damp", type=float, help="gptq: share of the mean diagonal (default: 0.01)")
    to_folder.add_argument(
        "--true-sequential",
        action=argparse.BooleanOptionalAction,
        help="gptq: calibrate each layer on the layers before it quantized, also in its own block (default: yes)",
    )
    to_folder.add_argument(
        "--clip", action=argparse.BooleanOptionalAction, help="awq: search clipped ranges (default: yes)"
    )
    parser.add_argument("--backend", help="of gptq, awq and GGUF's encoders: numpy or numba (default: numpy)")
    parser.add_argument(
        "--stream",
        action="store_true",
        help="a folder of safetensors, tensor by tensor or block by block; by itself where the model in float32 would "
        "take more than half of the memory",
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run of --stream")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args) -> int:
    """Quantize and write; nothing is left behind when that fails."""
    to_file = args.out.endswith(".gguf")
    wrong = [name for name in (TO_FOLDER if to_file else TO_FILE) if getattr(args, name) is not None]
    if wrong:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        other = "folders; name the output without .gguf" if to_file else "GGUF files; name the output OUT.gguf"
        raise BadInput(f"{names}: for {other}")
    stream = _streams(args)
    try:
        return (_to_file if to_file else _to_folder)(args, stream)
    except KeyboardInterrupt:
        if stream and not args.plan:
            print(f"\n{args.out}: what is done is kept beside it; --resume continues", file=sys.stderr)
        raise


def _streams(args) -> bool:
    """Whether the model is quantized from its files, piece by piece; says so where nobody asked for it."""
    path = Path(args.model)
    if args.device_map is not None:
        if args.stream or args.resume:
            raise BadInput("--device-map spreads a model that is loaded; --stream loads one block at a time")
        return False
    if args.stream or args.resume:
        if not path.is_dir():
            raise BadInput(f"--stream reads a folder of safetensors; {args.model} is none")
        return True
    if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
        return False
    from refquant.models import checkpoint

    if checkpoint.is_quantized(path):
        return False
    with checkpoint.Folder(path) as folder:
        size = 4 * sum(header.count for header in folder.tensors.values())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else float("inf")
    if size > memory / 2:
        print(f"{args.model} takes {size / 1e9:.1f} GB in float32: streamed, as with --stream", file=sys.stderr)
    return size > memory / 2


# ---- a file


def _to_file(args, stream: bool) -> int:
    from refquant import models
    from refquant.formats import imatrix
    from refquant.models import gguf
    from refquant.models.mix import plan

    mix, pure = args.type or "Q4_K_M", bool(args.pure)
    importance = imatrix.read(args.imatrix) if args.imatrix else None
    options = {"importance": importance, "pure": pure, "progress": not args.quiet}
    options["backend"] = args.backend or "numpy"
    if stream and not args.plan:
        chosen = gguf.convert(args.model, args.out, mix, resume=args.resume, **options)
    else:
        if stream:
            model = models.checkpoint.empty_model(models.checkpoint.read_config(Path(args.model)))
        else:
            model, tokenizer = models.load(args.model, progress=not args.quiet)
        chosen = plan(model, mix, importance is not None, pure)
        if not args.plan:
            chosen = gguf.export(model, tokenizer, args.out, mix, **options)
    if args.json:
        tensors = {c.name: {"type": c.type, "shape": list(c.shape), "bytes": c.nbytes} for c in chosen.choices}
        print(json.dumps({"mix": mix, "bits_per_weight": chosen.bits_per_weight, "tensors": tensors}, indent=2))
    elif args.plan:
        print(chosen)
    else:
        print(f"{args.out}: {mix}, {chosen.bits_per_weight:.4f} bits per weight, {chosen.nbytes / 1e6:.1f} MB")
    return 0


# ---- a folder


def _settings(args) -> tuple[str, str, str, dict]:
    """Method, format, grid and the method's options, with what is not said filled in."""
    from refquant.methods.registry import defaults, find_method

    method = args.method or "gptq"
    find_method(method)
    if method not in DEFAULTS:
        raise BadInput(f"{method} is for GGUF files; name the output OUT.gguf and the mix with --type")
    kind = args.format or DEFAULTS[method][0]
    grid = args.grid or GRID_OF_FORMAT.get((method, kind), DEFAULTS[method][1])
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    if wrong := [name for name in given if OPTIONS[name] != method]:
        raise BadInput(f"--{wrong[0].replace('_', '-')} is an option of {OPTIONS[wrong[0]]}, not of {method}")
    if args.backend is not None and not find_method(method).accelerated:
        raise BadInput(f"--backend is for gptq, awq and GGUF files, not for {method}")
    return method, kind, grid, defaults(method)[1] | given


def _to_folder(args, stream: bool) -> int:
    from refquant import models
    from refquant.methods.registry import find_method
    from refquant.models import checkpoint

    method, kind, grid, options = _settings(args)
    dtype, progress = args.dtype or "float16", not args.quiet
    if stream:
        tokenizer = checkpoint.read_tokenizer(Path(args.model))
    else:
        model, tokenizer = models.load(args.model, progress=progress, device_map=args.device_map)
        checkpoint.check_model(model, kind, grid, dtype, **options)
    ids = None
    if find_method(method).needs:
        if tokenizer is None:
            raise BadInput(f"{args.model} has no tokenizer, so there is nothing to calibrate {method} on")
        windows = 32 if args.calibration_windows is None else args.calibration_windows
        context = 512 if args.context is None else args.context
        ids = models.data.calibration(args.model, tokenizer, args.calibration, windows, context).ids
    if not stream:
        options["method_backend"] = args.backend
        report = models.quantize(model, method, grid, ids, progress=progress, **options)
        models.save(model, args.out, format=kind, tokenizer=tokenizer, dtype=dtype)
    elif ids is None:
        report = checkpoint.quantize_folder(
            args.model, args.out, kind, grid, dtype, resume=args.resume, progress=progress
        )
    else:
        if args.backend is not None:
            options["backend"] = args.backend
        report = checkpoint.quantize_blocks(
            args.model, args.out, kind, ids, method, grid, dtype, resume=args.resume, progress=progress, **options
        )
    errors = [layer.error for layer in report.layers if layer.error is not None]
    result = {
        "folder": args.out,
        "method": method,
        "grid": report.grid,
        "options": {name: value for name, value in options.items() if value is not None},
        "format": kind,
        "layers": len(report.layers),
        "bits_per_weight": report.bits_per_weight,
        "model_bytes": report.model_bytes,
        "seconds": report.seconds,
        "mean_layer_error": sum(errors) / len(errors) if errors else None,
    }
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print(
            f"{args.out}: {method} {report.grid} as {kind}, {len(report.layers)} layers, "
            f"{report.bits_per_weight:.4f} bits per weight, {report.model_bytes / 1e6:.1f} MB"
        )
    return 0
