"""The tables of `refquant bench gpu` about a model that generates: a token, and a launch.

    decode        one token of a Llama-3-8B-shaped model, everything in one graph, the cache 256 tokens long
    launches      one launch from Python

A token is predicted twice: from its bytes and the bandwidth alone, and as the sum of its parts (each product at its
size, what lies between the products of a layer, a model without layers), each measured alone in a graph of its own,
launches included. Nothing is fitted.
"""

import statistics
import time
from dataclasses import replace
from functools import partial

from refquant import ops

CONTEXT = 256


def row(table, name, us, n, k, nbytes):
    """What is recorded of one token."""
    return {"table": table, "name": name, "n": n, "k": k, "tokens": 1, "us": us, "bytes": nbytes}


def decode(b):
    """One token of a Llama-3-8B-shaped model, and the sum of its parts, each measured alone."""
    from refquant_kernels.cuda import decoder

    torch, shape = b.torch, decoder.Shape()
    layer_products = shape.linears()[:4]

    def linear(name):
        if name == "F16":
            return lambda n, k: decoder.float16_linear(torch.randn(n, k, device=b.device, dtype=torch.half) * 0.02)
        return lambda n, k: decoder.StripsLinear(b.weights(name, n, k))

    def step(sizes, name):
        model = decoder.Decoder(sizes, linear(name), b.device)
        model.position.fill_(CONTEXT)
        return model, b.replays(model.capture())

    for name in ("F16", "int4-g128", "Q4_K"):
        with torch.no_grad():
            model, us = step(shape, name)
            between = b.microseconds([partial(model.between_products, layer) for layer in model.layers])
            model = None
            _, ends = step(replace(shape, layers=0), name)  # the embedding, the head, the choice of the next token
            torch.cuda.empty_cache()
            alone = [b.float16(n, k, 1) if name == "F16" else b.product(name, n, k, 1) for n, k, _ in layer_products]
        sizes = [(many, ops.traffic("matmul", (n, k), name, activation_bytes=2)) for n, k, many in shape.linears()]
        nbytes = 4 * shape.layers * shape.kv_heads * 128 * CONTEXT + sum(many * size.bytes for many, size in sizes)
        parts = {"products": alone, "between": between, "ends": ends}
        predicted = ends + shape.layers * (sum(alone) + between)
        yield row("decode", name, us, None, None, nbytes) | {"parts": parts, "predicted": predicted}
        torch.cuda.empty_cache()


def launches(b, count: int = 4000):
    """One launch from Python, not waited for, by the clock: a small kernel of three arguments."""
    x, y = (b.torch.zeros(64, device=b.device, dtype=b.torch.half) for _ in range(2))
    kernel = b.launch.load("decoder.cu", "gate")
    for name, overlap in (("eager launch", False), ("eager launch, overlap", True)):
        spent = []
        for _ in range(b.runs + 1):
            b.torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(count):
                kernel((1, 1, 1), (32, 1, 1), x, y, 32, overlap=overlap)
            spent.append(1e6 * (time.perf_counter() - began) / count)
        yield row("launches", name, statistics.median(spent[1:]), 1, 32, 192)


TABLES = {"decode": decode, "launches": launches}
