"""Real language models: load them, walk their Linear layers, calibrate, quantize, run from the quantized arrays.

    load        a name, a folder, a GGUF file or a hub id -> model and tokenizer
    tiny        the bundled model; tiny_recipe is how it was made
    fetch       the model that the package registry holds, into the user's cache
    data        token ids for evaluation and calibration
    walk        decoder blocks and the Linear layers in them
    linear      QuantLinear: a Linear layer that computes from quantized arrays
    calibrate   the inputs of every block, streamed one block at a time
    dispatch    models spread over several devices by Hugging Face Accelerate
    absorb      AWQ's scales moved into the layer before, so that the function stays the same
    quantize    all of it together, and report, what came of it
    split       the first blocks on one backend, the rest on another
    mix         a whole model in the types that a GGUF mix gives its tensors
    gguf        models <-> GGUF files
    checkpoint  models <-> folders in the formats of GPU servers; `save`

Needs torch and transformers (`pip install refquant[torch]`); `import refquant` does not load this package.
"""

from refquant.models import data
from refquant.models.checkpoint import save
from refquant.models.linear import QuantLinear
from refquant.models.load import KNOWN, caveats, load
from refquant.models.quantize import quantize
from refquant.models.report import Report

__all__ = ["KNOWN", "QuantLinear", "Report", "caveats", "data", "load", "quantize", "save"]
