"""`refquant eval`: perplexity of one model."""

import json

from tqdm import tqdm

from refquant import evaluate


def add_arguments(parser) -> None:
    """Add the options of `refquant eval`."""
    parser.add_argument("model", help="a name (see `refquant models`), folder, GGUF file or hub id")
    parser.add_argument("--text", metavar="FILE", help="default: the model's own, or Python's language reference")
    parser.add_argument("--protocol", choices=evaluate.PROTOCOLS, default="llama.cpp", help="default: %(default)s")
    parser.add_argument("--context", type=int, default=512, help="tokens in a window (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=24, help="at most so many windows (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args) -> int:
    """Print perplexity, its standard error and the protocol."""
    from refquant import models

    model, tokenizer = models.load(args.model, progress=not args.quiet)
    text = models.data.evaluation(args.model, tokenizer, args.text)
    windows = len(evaluate.cut_windows(text.ids, args.context, args.windows))
    with tqdm(total=windows, desc="score", unit="window", disable=args.quiet, leave=False) as bar:
        bos = models.data.first_token(tokenizer)
        scores = evaluate.score(model, text.ids, args.protocol, args.context, windows, bos=bos, progress=bar.update)
    result = {
        "model": args.model,
        "perplexity": scores.perplexity,
        "perplexity_stderr": scores.perplexity_stderr,
        "protocol": scores.protocol,
        "context": scores.context,
        "windows": windows,
        "scored_tokens": len(scores.nll),
        "text": text.name,
    }
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print(
            f"perplexity {scores.perplexity:.4f} ± {scores.perplexity_stderr:.4f} "
            f"({scores.protocol}, {windows} windows of {scores.context} tokens, {text.name})"
        )
    return 0
