"""`refquant compare`: the main job."""

from pathlib import Path

from refquant import compare as table
from refquant.errors import BadInput
from refquant.evaluate.perplexity import PROTOCOLS


def add_arguments(parser) -> None:
    """Add the options of `refquant compare`."""
    parser.add_argument("--model", default="tiny", help="a name (see `refquant models`), folder, GGUF file or hub id")
    parser.add_argument("--methods", help="comma-separated methods (rtn,gptq) or rows ('GPTQ int4-g128'); default: all")
    parser.add_argument("--text", metavar="FILE", help="evaluation text (default: see below)")
    parser.add_argument("--calibration", metavar="FILE", help="calibration text (default: see below)")
    parser.add_argument("--windows", type=int, default=24, help="evaluation windows (default: %(default)s)")
    parser.add_argument("--context", type=int, default=512, help="tokens in a window (default: %(default)s)")
    parser.add_argument("--calibration-windows", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="llama.cpp", help="default: %(default)s")
    parser.add_argument(
        "--backend", choices=("numpy", "numba"), help="who computes GPTQ and AWQ (default: Numba for larger models)"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write the table, unrounded, with all that is needed to repeat it"
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw perplexity against bits per weight")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args) -> int:
    """Measure, print each row as it is ready, then write what was asked for."""
    for path in filter(None, (args.json, args.plot)):  # minutes before it is written
        if not Path(path).absolute().parent.is_dir():
            raise BadInput(f"{path}: there is no such folder to write to")
    chosen = [part.strip() for part in args.methods.split(",")] if args.methods else None
    print(table.render_row(table.HEADER), flush=True)
    result = table.compare(
        args.model,
        methods=chosen,
        text=args.text,
        calibration=args.calibration,
        windows=args.windows,
        context=args.context,
        calibration_windows=args.calibration_windows,
        protocol=args.protocol,
        progress=not args.quiet,
        on_line=lambda line: print(table.render_line(line), flush=True),
        backend=args.backend,
    )
    print("\n" + table.render_notes(result))
    if args.json:
        table.write_json(result, args.json)
    if args.plot:
        table.write_plot(result, args.plot)
    return 0
