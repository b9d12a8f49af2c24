"""Measure a model's layers for the ledger: how far weights and inputs stray, and what few channels do to the error.

For each Linear layer of the blocks, on the windows given: the largest over the median magnitude, of its weights and of
its inputs; and the share of the squared output error of RTN int4-g128 that is due to the 1 % of input channels with the
largest mean magnitude (AWQ's measure), channels taken as uncorrelated::

    error of channel j = mean(x_j^2) * sum_i (W_ij - W'_ij)^2

`python -m refquant.claims.measure tiny smollm2` prints the result as JSON; `layers.json` beside this file is one.
"""

import json
import sys

import numpy as np

from refquant.methods import rtn


def layers(model, ids, name: str) -> dict:
    """Return the statistics of `model` (a causal LM) on token ids int [windows, context]."""
    import torch

    from refquant.models import walk

    found = {"weight_peak_over_median": [], "input_peak_over_median": [], "top_percent_error_share": []}

    def look(layer, args):
        x = args[0].detach().float().reshape(-1, args[0].shape[-1]).cpu().numpy()
        w = walk.weight_array(layer)
        for key, values in (("weight_peak_over_median", w), ("input_peak_over_median", x)):
            sizes = np.abs(values)
            found[key].append(round(float(sizes.max() / np.median(sizes)), 2))
        errors = (x.astype(np.float64) ** 2).mean(0) * ((w - rtn.rounded(w, "int4-g128")) ** 2).sum(0)
        top = np.argsort(np.abs(x).mean(0))[-max(round(0.01 * x.shape[1]), 1) :]
        found["top_percent_error_share"].append(round(float(errors[top].sum() / errors.sum()), 4))

    hooks = [
        layer.register_forward_pre_hook(look) for block in walk.blocks(model) for layer in walk.linears(block).values()
    ]
    try:
        with torch.inference_mode():
            model(torch.from_numpy(np.asarray(ids, np.int64)))
    finally:
        for hook in hooks:
            hook.remove()
    return {"model": name, "tokens": int(np.asarray(ids).size)} | found


def main(*names: str) -> None:
    """Measure models on four windows of 512 tokens of their calibration text, and print JSON by name."""
    from refquant import models

    found = {}
    for name in names:
        model, tokenizer = models.load(name)
        found[name] = layers(model, models.data.calibration(name, tokenizer, windows=4).ids, name)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
