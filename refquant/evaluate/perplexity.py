"""Perplexity under named protocols, and the KL divergence of the predictions from another model's.

The same model on the same text scores differently under different protocols, so a perplexity without its protocol,
context and tokenizer compares with nothing::

    protocol      windows                   scored tokens
    llama.cpp     non-overlapping           the second half of each: positions context/2 + 1 .. context - 1
    huggingface   non-overlapping           all but the first: positions 1 .. context - 1

The first tokens of a window are predicted from little context; leaving the first half out is why llama.cpp prints lower
numbers than the GPTQ and AWQ papers' code at the same context (and higher ones at 512 than those at 2048).

Sources: tools/perplexity/perplexity.cpp of llama.cpp (windows, standard error); `llama_eval` in the GPTQ paper's code
(huggingface). Leaves out: strided windows.
"""

import inspect
import math
from dataclasses import dataclass, field

import numpy as np

from refquant.errors import BadInput, UnknownName

PROTOCOLS = ("llama.cpp", "huggingface")
CHUNK = 1 << 22  # logits that are scored at a time: 16 MB, so that what is computed from them stays in the cache


@dataclass
class Scores:
    """What one pass over the text measured.

    `nll` holds the negative log-likelihood of each scored token, `reference_nll` the reference model's, in nats.
    """

    protocol: str
    context: int
    nll: np.ndarray
    kl: np.ndarray | None = None
    reference_nll: np.ndarray | None = None
    agreement: float | None = None
    log_probs: list[np.ndarray] = field(default_factory=list, repr=False)

    @property
    def perplexity(self) -> float:
        """The exponential of the mean negative log-likelihood; infinity where that overflows."""
        return _exp(self.nll.mean())

    @property
    def perplexity_stderr(self) -> float:
        """Standard error of the perplexity, taking tokens as independent (as llama.cpp does)."""
        return self.perplexity * float(self.nll.std(ddof=1)) / math.sqrt(len(self.nll))

    @property
    def perplexity_change(self) -> float | None:
        """Perplexity above the reference's, on the same tokens."""
        return None if self.reference_nll is None else self.perplexity - _exp(self.reference_nll.mean())

    @property
    def perplexity_change_stderr(self) -> float | None:
        """Standard error of the change: of the difference token by token, so far below that of either perplexity."""
        if self.reference_nll is None:
            return None
        spread = self.perplexity * self.nll - _exp(self.reference_nll.mean()) * self.reference_nll  # delta method
        return float(spread.std(ddof=1)) / math.sqrt(len(spread))

    @property
    def kl_mean(self) -> float | None:
        """Mean KL(reference ‖ this model) per scored token, in nats."""
        return None if self.kl is None else float(self.kl.mean())

    @property
    def kl_stderr(self) -> float | None:
        """Standard error of `kl_mean`."""
        return None if self.kl is None else float(self.kl.std(ddof=1)) / math.sqrt(len(self.kl))

    def word_perplexity(self, words: int) -> float:
        """Perplexity per word: the same total over `words` words instead of tokens (lm-evaluation-harness's)."""
        return _exp(self.nll.sum() / words)

    def bits_per_byte(self, size: int) -> float:
        """Bits per byte of the scored text's `size` bytes: comparable between tokenizers."""
        return float(self.nll.sum() / math.log(2) / size)


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def first_scored(protocol: str, context: int) -> int:
    """Index of the first position of a window whose prediction of the next token is scored."""
    if protocol not in PROTOCOLS:
        raise UnknownName("protocol", protocol, PROTOCOLS)
    return context // 2 if protocol == "llama.cpp" else 0


def cut_windows(ids, context: int, limit: int | None = None) -> np.ndarray:
    """Cut token ids [tokens] into non-overlapping windows, int64 [windows, context]; the rest is left out."""
    if context < 4:
        raise BadInput(f"context must be at least 4 tokens, got {context}")
    if limit is not None and limit < 1:
        raise BadInput(f"at least one window is needed, got {limit}")
    ids = np.asarray(ids).reshape(-1).astype(np.int64)
    count = len(ids) // context
    if not count:
        raise BadInput(f"the text has {len(ids)} tokens, fewer than one window of {context}; give more text")
    return ids[: count * context].reshape(count, context)[:limit]


def score(
    model,
    ids,
    protocol: str = "llama.cpp",
    context: int = 512,
    windows: int | None = None,
    reference: Scores | None = None,
    keep: bool = False,
    bos: int | None = None,
    batch: int = 2,
    progress=None,
) -> Scores:
    """Run `model` over windows of `ids` and score its predictions.

    Parameters
    ----------
    model : callable
        A transformers causal LM, or anything that maps ids [batch, context] to an object with `.logits`.
    ids : int [tokens]
    protocol : str
        One of `PROTOCOLS`.
    context : int
        Tokens in a window.
    windows : int, optional
        Only the first so many windows.
    reference : Scores, optional
        The unquantized model's scores made with `keep=True` on the same ids in the same batches; adds the KL divergence
        and the share of tokens whose most likely continuation is the same.
    keep : bool
        Keep the log-probabilities (float16, 2 bytes * vocabulary for each scored token) for use as a reference.
    bos : int, optional
        Under llama.cpp's protocol: put this token in the first place of each window, for models trained to see one
        (llama.cpp does so where the tokenizer asks for it; Gemma without it is ruined). The papers' code never does.
    progress : callable, optional
        Called with the number of windows done after each batch.
    """
    import torch

    start = first_scored(protocol, context)
    cut = cut_windows(ids, context, windows)
    scored = context - 1 - start
    # Where the model can leave out the logits of unscored positions, it need not compute them.
    forward = inspect.signature(getattr(model, "forward", model)).parameters
    keep_last = {"logits_to_keep": scored + 1} if "logits_to_keep" in forward else {}
    nll, kl, same, kept = [], [], [], []
    for begin in range(0, len(cut), batch):
        part = torch.from_numpy(cut[begin : begin + batch])
        targets = part[:, start + 1 :].reshape(-1)
        if bos is not None and protocol == "llama.cpp":
            part = torch.cat([torch.full_like(part[:, :1], bos), part[:, 1:]], dim=1)
        with torch.inference_mode():
            logits = model(part.to(_device(model)), **keep_last).logits[:, -scored - 1 : -1].flatten(0, 1)
            rows = max(1, CHUNK // logits.shape[1])
            for first in range(0, len(logits), rows):
                some = slice(first, first + rows)
                log_probs = logits[some].float().cpu().log_softmax(-1)
                token_nll = -log_probs.gather(-1, targets[some, None])[:, 0]
                if not torch.isfinite(token_nll).all():
                    raise BadInput("the model gives NaN or infinite log-probabilities; no perplexity can be stated")
                nll.append(token_nll.numpy())
                if reference is not None:
                    expected = torch.from_numpy(reference.log_probs[len(kl)]).float()
                    expected -= expected.logsumexp(-1, keepdim=True)  # float16 storage loses a little of the sum
                    kl.append((expected.exp() * (expected - log_probs)).sum(-1).numpy())
                    same.append((expected.argmax(-1) == log_probs.argmax(-1)).numpy())
                if keep:
                    kept.append(log_probs.half().numpy())
        if progress:
            progress(len(part))
    scores = Scores(protocol, context, np.concatenate(nll).astype(np.float64), log_probs=kept)
    if reference is not None:
        scores.kl = np.concatenate(kl).astype(np.float64)
        scores.reference_nll = reference.nll
        scores.agreement = float(np.concatenate(same).mean())
    return scores


def perplexity(model, ids, protocol: str = "llama.cpp", context: int = 512, **options) -> float:
    """Perplexity of `model` on `ids`; see `score`, which also gives its standard error."""
    return score(model, ids, protocol, context, **options).perplexity


def _device(model):
    parameters = getattr(model, "parameters", None)
    return next(parameters()).device if parameters else "cpu"
