"""Perplexity protocols against sums done by hand, KL against its definition, layer error against a float64 loop."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from refquant.errors import BadInput, UnknownName
from refquant.evaluate import cut_windows, layer_error, perplexity, score, texts


class FixedModel:
    """Predicts from the current token alone: row i of `table` holds the logits after token i."""

    def __init__(self, table):
        self.table = torch.as_tensor(table, dtype=torch.float32)

    def __call__(self, ids):
        return SimpleNamespace(logits=self.table[ids])


# Two tokens. After 0: P(0) = 1/4, P(1) = 3/4. After 1: P(0) = 1/2, P(1) = 1/2.
CHAIN = FixedModel(np.log([[1 / 4, 3 / 4], [1 / 2, 1 / 2]]))
#        window 1                  window 2
IDS = [0, 1, 0, 0, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 1]  # 17 tokens: the last does not fill a window


def test_case_49_each_protocol_gives_its_own_known_number():
    # Predictions of window 1 (0 1 0 0 1 1 0 1), by position 1..7: 3/4 1/2 1/4 3/4 1/2 1/2 3/4
    # Predictions of window 2 (1 1 1 0 0 0 1 0), by position 1..7: 1/2 1/2 1/2 1/4 1/4 3/4 1/2
    half = [1 / 2, 1 / 2, 3 / 4, 1 / 4, 3 / 4, 1 / 2]  # positions 5, 6, 7 of each: llama.cpp scores after context/2
    every = [3 / 4, 1 / 2, 1 / 4, 3 / 4, 1 / 2, 1 / 2, 3 / 4, 1 / 2, 1 / 2, 1 / 2, 1 / 4, 1 / 4, 3 / 4, 1 / 2]
    llama = score(CHAIN, IDS, "llama.cpp", context=8)
    hugging = score(CHAIN, IDS, "huggingface", context=8)
    assert llama.perplexity == pytest.approx(math.prod(half) ** (-1 / 6), rel=1e-6)
    assert hugging.perplexity == pytest.approx(math.prod(every) ** (-1 / 14), rel=1e-6)
    assert hugging.word_perplexity(5) == pytest.approx(math.prod(every) ** (-1 / 5), rel=1e-6)
    assert hugging.bits_per_byte(20) == pytest.approx(-math.log2(math.prod(every)) / 20, rel=1e-6)
    seen = []
    score(lambda ids: seen.append(ids) or CHAIN(ids), IDS, "llama.cpp", context=8, bos=1)
    assert torch.cat(seen).tolist() == [[1, *IDS[1:8]], IDS[8:16]]
    seen.clear()
    score(lambda ids: seen.append(ids) or CHAIN(ids), IDS, "huggingface", context=8, bos=1)
    assert torch.cat(seen).tolist() == [IDS[:8], IDS[8:16]], "the papers' code puts no token in front"


def test_standard_error_is_that_of_independent_tokens():
    nll = -np.log([1 / 2, 1 / 2, 3 / 4, 1 / 4, 3 / 4, 1 / 2])
    expected = math.exp(nll.mean()) * nll.std(ddof=1) / math.sqrt(6)
    assert score(CHAIN, IDS, "llama.cpp", context=8).perplexity_stderr == pytest.approx(expected, rel=1e-5)


def test_kl_is_the_sum_of_its_definition_and_zero_against_itself():
    other = FixedModel(np.log([[1 / 3, 2 / 3], [1 / 2, 1 / 2]]))
    reference = score(CHAIN, IDS, "huggingface", context=8, keep=True)
    scores = score(other, IDS, "huggingface", context=8, reference=reference)
    after_zero = 1 / 4 * math.log((1 / 4) / (1 / 3)) + 3 / 4 * math.log((3 / 4) / (2 / 3))
    zeros = sum(token == 0 for token in [*IDS[:7], *IDS[8:15]])
    assert scores.kl_mean == pytest.approx(zeros * after_zero / 14, abs=2e-4)  # the reference is kept in float16
    assert scores.agreement == 1.0
    # llama.cpp's formula for the difference of two perplexities on the same tokens: their covariance counts.
    p, r = scores.perplexity, reference.perplexity
    cov = np.cov(scores.nll, reference.nll) / 14
    expected = math.sqrt(p * p * cov[0, 0] + r * r * cov[1, 1] - 2 * p * r * cov[0, 1])
    assert scores.perplexity_change == pytest.approx(p - r, rel=1e-9)
    assert scores.perplexity_change_stderr == pytest.approx(expected, rel=1e-9)
    same = score(CHAIN, IDS, "huggingface", context=8, reference=reference)
    assert abs(same.kl_mean) < 1e-6


def test_a_model_that_gives_nan_has_no_perplexity():
    with pytest.raises(BadInput, match="NaN"):
        perplexity(FixedModel([[math.nan, 0], [0, 0]]), IDS, context=8)


def test_named_errors():
    with pytest.raises(UnknownName, match=r"llama\.cpp"):
        perplexity(CHAIN, IDS, protocol="word", context=8)
    with pytest.raises(BadInput, match="fewer than one window"):
        perplexity(CHAIN, IDS, context=512)
    with pytest.raises(BadInput, match="context"):
        cut_windows(IDS, 2)
    with pytest.raises(BadInput, match="at least one window"):
        cut_windows(IDS, 8, 0)


def test_layer_error_is_the_relative_squared_output_error():
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(5, 8)), rng.normal(size=(30, 8)) * np.arange(1, 9)
    w_hat = np.round(w * 4) / 4
    exact = sum(float((w[i] - w_hat[i]) @ x[t]) ** 2 for i in range(5) for t in range(30)) / sum(
        float(w[i] @ x[t]) ** 2 for i in range(5) for t in range(30)
    )
    assert layer_error(w, w_hat, 7 * x.T @ x) == pytest.approx(exact, rel=1e-10)
    assert layer_error(w, w, x.T @ x) == 0
    with pytest.raises(BadInput):
        layer_error(w, w_hat, np.eye(7))


def test_the_two_texts_are_there_and_share_nothing(tmp_path):
    evaluation, calibration = texts.evaluation(), texts.calibration(characters=100_000)
    assert len(evaluation.text) > 300_000
    assert len(calibration.text) == 100_000
    paragraphs = {p.strip() for p in evaluation.text.split("\n\n") if len(p.strip()) > 100}
    assert not paragraphs & {p.strip() for p in calibration.text.split("\n\n")}
    (tmp_path / "empty.txt").write_text(" \n")
    for bad in (tmp_path / "empty.txt", tmp_path / "missing.txt", tmp_path):
        with pytest.raises(BadInput):
            texts.evaluation(bad)
