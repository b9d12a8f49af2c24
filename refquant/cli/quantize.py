"""`refquant quantize`: a model to a GGUF file, or to a checkpoint folder that serving engines load."""

import json
from pathlib import Path

from refquant.errors import BadInput


def add_arguments(parser) -> None:
    """Add the options of `refquant quantize`."""
    parser.add_argument("model", help="a name (see `refquant models`), folder, GGUF file or hub id")
    parser.add_argument("out", help="OUT.gguf, or a folder")
    to_file = parser.add_argument_group("to a GGUF file")
    to_file.add_argument("--type", default="Q4_K_M", help="a mix or a block format (default: %(default)s)")
    to_file.add_argument("--imatrix", metavar="FILE", help="importance matrix, in either of llama.cpp's forms")
    to_file.add_argument("--pure", action="store_true", help="the same type for every matrix")
    to_file.add_argument("--plan", action="store_true", help="print the type of every tensor, and write nothing")
    to_folder = parser.add_argument_group("to a checkpoint folder")
    to_folder.add_argument("--method", default="gptq", help="rtn, gptq, awq, nf4, fp8, ... (default: %(default)s)")
    to_folder.add_argument("--grid", help="default: int4-g128-sym, or the method's own format")
    to_folder.add_argument("--format", default="gptq", help="gptq, gptq_v2, awq, compressed-tensors, fp8, bitsandbytes")
    to_folder.add_argument(
        "--calibration", metavar="FILE", help="calibration text (default: standard library docstrings)"
    )
    to_folder.add_argument("--calibration-windows", type=int, default=32, help="default: %(default)s")
    to_folder.add_argument("--context", type=int, default=512, help="tokens in a window (default: %(default)s)")
    to_folder.add_argument("--dtype", default="float16", help="of what stays unquantized (default: %(default)s)")
    to_folder.add_argument("--stream", action="store_true", help="tensor by tensor, for models larger than memory")
    to_folder.add_argument("--resume", action="store_true", help="with --stream: continue an interrupted run")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args) -> int:
    """Quantize and write; nothing is left behind when that fails."""
    if args.out.endswith(".gguf"):
        return _to_file(args)
    if args.plan or args.imatrix:
        raise BadInput("--plan and --imatrix belong to GGUF files; name the output OUT.gguf")
    return _stream(args) if args.stream else _to_folder(args)


def _to_file(args) -> int:
    from refquant import models
    from refquant.formats import imatrix
    from refquant.models import gguf
    from refquant.models.mix import plan

    importance = imatrix.read(args.imatrix) if args.imatrix else None
    model, tokenizer = models.load(args.model, progress=not args.quiet)
    chosen = plan(model, args.type, importance is not None, args.pure)
    if not args.plan:
        chosen = gguf.export(
            model, tokenizer, args.out, args.type, importance=importance, pure=args.pure, progress=not args.quiet
        )
    if args.json:
        tensors = {c.name: {"type": c.type, "shape": list(c.shape), "bytes": c.nbytes} for c in chosen.choices}
        print(json.dumps({"mix": args.type, "bits_per_weight": chosen.bits_per_weight, "tensors": tensors}, indent=2))
    elif args.plan:
        print(chosen)
    else:
        print(f"{args.out}: {args.type}, {chosen.bits_per_weight:.4f} bits per weight, {chosen.nbytes / 1e6:.1f} MB")
    return 0


def _to_folder(args) -> int:
    from refquant import models
    from refquant.methods.registry import find_method

    method = find_method(args.method)
    grid = args.grid or (method.rows[0].grid if method.rows and not method.rows[0].grid.startswith("int") else None)
    model, tokenizer = models.load(args.model, progress=not args.quiet)
    samples = None
    if method.needs:
        samples = models.data.calibration(
            args.model, tokenizer, args.calibration, args.calibration_windows, args.context
        ).ids
    report = models.quantize(model, args.method, grid or "int4-g128-sym", samples, progress=not args.quiet)
    models.save(model, args.out, format=args.format, tokenizer=tokenizer, dtype=args.dtype)
    errors = [layer.error for layer in report.layers if layer.error is not None]
    result = {
        "folder": args.out,
        "method": report.method,
        "grid": report.grid,
        "format": args.format,
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
            f"{args.out}: {report.method} {report.grid} as {args.format}, {len(report.layers)} layers, "
            f"{report.bits_per_weight:.4f} bits per weight, {report.model_bytes / 1e6:.1f} MB"
        )
    return 0


def _stream(args) -> int:
    from refquant.methods.registry import find_method
    from refquant.models import checkpoint

    if find_method(args.method).needs:
        raise BadInput(f"{args.method} looks at activations and cannot stream tensors; use rtn, nf4 or fp8")
    if not Path(args.model).is_dir():
        raise BadInput(f"--stream reads a folder of safetensors; {args.model} is none")
    grid = args.grid or "int4-g128-sym"
    checkpoint.quantize_folder(
        args.model, args.out, args.format, grid, args.dtype, resume=args.resume, progress=not args.quiet
    )
    print(f"{args.out}: {grid} as {args.format}")
    return 0
