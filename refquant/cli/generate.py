"""`refquant generate`: continue a prompt, greedily or by sampling."""

import sys

from refquant.errors import BadInput


def add_arguments(parser) -> None:
    """Add the options of `refquant generate`."""
    parser.add_argument("prompt", help="the text to continue")
    parser.add_argument("--model", default="tiny", help="a name (see `refquant models`), folder, GGUF file or hub id")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens at most (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: %(default)s)")
    parser.add_argument("--top-p", type=float, default=0.95, help="nucleus, when sampling (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", help="quantize first: rtn, gptq, awq, ...")
    parser.add_argument("--grid", help="with --method (default: the method's first row in the table)")
    parser.add_argument("--backend", default="dense", help="of the quantized layers: dense, numpy, numba, cuda")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args) -> int:
    """Print the prompt and its continuation, token by token."""
    import torch
    from transformers import TextStreamer

    from refquant import models
    from refquant.methods.registry import defaults

    if args.temperature < 0 or not args.prompt:
        raise BadInput("a prompt is needed, and a temperature of at least 0")
    model, tokenizer = models.load(args.model, progress=not args.quiet)
    if args.method:
        grid, options = defaults(args.method, args.grid)
        models.quantize(
            model,
            args.method,
            grid,
            calibration=models.data.calibration(args.model, tokenizer).ids,
            progress=not args.quiet,
            backend=args.backend,
            **options,
        )
    torch.manual_seed(args.seed)
    prompt = tokenizer(args.prompt, return_tensors="pt")
    sampling = {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p} if args.temperature else {}
    model.generate(
        **prompt,
        max_new_tokens=args.tokens,
        streamer=TextStreamer(tokenizer, skip_special_tokens=True),
        pad_token_id=tokenizer.eos_token_id,
        **(sampling or {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}),
    )
    sys.stdout.flush()
    return 0
