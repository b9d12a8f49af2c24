"""How much a quantized model lost. Every number comes with the protocol that makes it comparable.

layer        relative squared error of one layer's output
trace        GPTQ with every intermediate state kept, to look at
perplexity   named protocols, standard errors, KL divergence from the unquantized model
texts        evaluation and calibration text that every Python installation already holds
"""

from refquant.evaluate.layer import layer_error
from refquant.evaluate.perplexity import PROTOCOLS, Scores, cut_windows, perplexity, score
from refquant.evaluate.trace import Trace, trace

__all__ = ["PROTOCOLS", "Scores", "Trace", "cut_windows", "layer_error", "perplexity", "score", "trace"]
