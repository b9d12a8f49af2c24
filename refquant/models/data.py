"""Token ids for evaluation and calibration: a model's own held-out text where it brings one, else built-in text.

The bundled `tiny` was trained on documentation that overlaps with the built-in texts, so it comes with token ids of
documents that it never saw. Every other model reads `evaluate.texts`.
"""

from dataclasses import dataclass

import numpy as np

from refquant.evaluate import cut_windows, texts
from refquant.models import tiny


@dataclass(frozen=True)
class Tokens:
    """Token ids, int64 [tokens], and where they come from."""

    name: str
    ids: np.ndarray


def evaluation(model: str, tokenizer, path: str | None = None) -> Tokens:
    """Return the tokens on which a model (by the name that `load` took) is evaluated; `path` names another text."""
    if model == "tiny" and path is None:
        return Tokens("tiny's own held-out documents", tiny.tokens("evaluation").astype(np.int64))
    return encode(tokenizer, texts.evaluation(path))


def calibration(
    model: str, tokenizer, path: str | None = None, windows: int | None = None, context: int = 512
) -> Tokens:
    """Return calibration tokens, ids [windows, context], which share nothing with the evaluation's.

    32 windows by default fit the time that `refquant compare` may take; the papers use 128 of 2048 tokens, and GPTQ
    still gains from more.
    """
    windows = 32 if windows is None else windows
    if model == "tiny" and path is None:
        found = Tokens("tiny's own calibration documents", tiny.tokens("calibration"))
    else:
        found = encode(tokenizer, texts.calibration(path))
    ids = cut_windows(found.ids, context, windows)
    if (bos := first_token(tokenizer)) is not None:
        ids[:, 0] = bos  # as the model sees every text begin
    return Tokens(found.name, ids)


def encode(tokenizer, text: texts.Text) -> Tokens:
    """Token ids of a text, without special tokens."""
    return Tokens(
        text.name, np.array(tokenizer(text.text, add_special_tokens=False, verbose=False).input_ids, np.int64)
    )


def first_token(tokenizer) -> int | None:
    """Return the token that this tokenizer puts before every text, if it does."""
    ids = tokenizer("a").input_ids
    return ids[0] if tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id] else None
