"""The trace of GPTQ: at every step the free columns stand where least squares would put them; the end is GPTQ's."""

import numpy as np
import pytest

import refquant as rq
from refquant import evaluate
from refquant.errors import BadInput
from refquant.methods import gptq, rtn


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(200, 24)) @ rng.normal(size=(24, 24))).astype(np.float32)
    return rng.normal(size=(6, 24)).astype(np.float32), gptq.hessian(x.astype(np.float64))


@pytest.mark.parametrize("act_order", [False, True])
def test_the_free_columns_are_the_least_squares_answer_to_the_fixed_ones(case, act_order):
    w, H = case
    t = evaluate.trace(w, H, "int3-g8", damp=0.0, act_order=act_order)
    for step in range(25):
        fixed, free = t.order[:step], t.order[step:]
        change = t.states[step] - w
        best = -np.linalg.solve(H[np.ix_(free, free)], H[np.ix_(free, fixed)] @ change[:, fixed].T).T
        np.testing.assert_allclose(change[:, free], best, atol=1e-9)


@pytest.mark.parametrize("act_order", [False, True])
def test_the_end_is_what_gptq_returns(case, act_order):
    w, H = case
    t = evaluate.trace(w, H, "int4-g8", act_order=act_order)
    r = gptq.quantize(w, H, "int4-g8", act_order=act_order, static_groups=True)
    np.testing.assert_allclose(t.states[-1], rq.dequantize(r.quantized), atol=1e-6)
    assert t.errors[0] == 0
    np.testing.assert_allclose(t.rounded_errors[-1], evaluate.layer_error(w, rtn.rounded(w, "int4-g8"), H))


def test_a_layer_too_large_to_keep_is_refused():
    with pytest.raises(BadInput, match="take a part"):
        evaluate.trace(np.ones((256, 768), np.float32), np.eye(768), "int4-row")
