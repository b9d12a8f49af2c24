"""Models spread by Accelerate over the GPUs that there are: the numbers of the model on the processor."""

import numpy as np
import pytest
import torch
from small_models import make, token_windows
from transformers import AutoModelForCausalLM

from refquant import models
from refquant.models import QuantLinear, dispatch

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
pytest.importorskip("accelerate")
IDS = token_windows(3, 16)
SECOND = torch.cuda.device_count() - 1
MAPS = {
    "two GPUs": {"model.layers.0": 0, "model.layers.1": SECOND, "model.norm": SECOND, "lm_head": SECOND},
    "GPU and memory": {"model.layers.0": 0, "model.layers.1": "cpu", "model.norm": "cpu", "lm_head": "cpu"},
}


@pytest.mark.parametrize("spread_over", MAPS)
@pytest.mark.parametrize(("method", "options"), [("gptq", {"act_order": True}), ("awq", {}), ("rtn", {})])
@pytest.mark.filterwarnings("ignore")  # of accelerate
def test_blocks_on_gpus_are_quantized_like_those_in_memory(tmp_path, spread_over, method, options):
    if spread_over == "two GPUs" and not SECOND:
        pytest.skip("one GPU")
    make("llama-gqa").save_pretrained(tmp_path)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    places = {"model.embed_tokens": 0, "model.rotary_emb": 0} | MAPS[spread_over]
    spread = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, device_map=places)
    assert dispatch.is_offloaded(spread.model.layers[1].mlp.up_proj) == (spread_over != "two GPUs")
    assert spread.model.layers[0].mlp.up_proj.weight.device == torch.device("cuda", 0)
    reports = [models.quantize(model, method, "int4-g32", IDS, **options) for model in (whole, spread)]
    assert reports[0].model_bytes == reports[1].model_bytes
    pairs = [[m.quantized for m in model.modules() if isinstance(m, QuantLinear)] for model in (whole, spread)]
    assert len(pairs[0]) == 14
    for one, two in zip(*pairs, strict=True):
        same = np.mean(one.arrays["codes"] == two.arrays["codes"])
        assert same > (1 if method == "rtn" else 0.97) - 1e-9, "sums in another order: a few near-ties"
    with torch.no_grad():
        ids = torch.from_numpy(IDS)
        expected, got = whole(ids).logits, spread(ids.cuda(0)).logits.cpu()
    assert (got - expected).norm() < (1e-4 if method == "rtn" else 0.1) * expected.norm()
