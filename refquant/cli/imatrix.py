"""`refquant imatrix`: measure how strongly each input column of a model's matrices is used."""


def add_arguments(parser) -> None:
    """Add the options of `refquant imatrix`."""
    parser.add_argument("model", help="a name (see `refquant models`), folder, GGUF file or hub id")
    parser.add_argument("out", help="OUT.gguf, or OUT.dat for llama.cpp's older form")
    parser.add_argument("--text", metavar="FILE", help="default: standard library docstrings")
    parser.add_argument("--windows", type=int, default=32, help="windows of text (default: %(default)s)")
    parser.add_argument("--context", type=int, default=512, help="tokens in a window (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args) -> int:
    """Run the text through the model and write the file, for `refquant quantize --imatrix` and for llama-quantize."""
    from refquant import evaluate, models
    from refquant.compare import token_ids
    from refquant.evaluate import texts
    from refquant.formats import imatrix
    from refquant.models import gguf

    text = texts.calibration(args.text)
    model, tokenizer = models.load(args.model, progress=not args.quiet)
    ids = evaluate.cut_windows(token_ids(tokenizer, text), args.context, args.windows)
    found = gguf.importance(model, ids, dataset=text.name, progress=not args.quiet)
    imatrix.write(args.out, found)
    print(f"{args.out}: {len(found.entries)} matrices, {ids.size} tokens of {text.name}")
    return 0
