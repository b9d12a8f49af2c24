"""Models spread by Accelerate: the same numbers as from the model in one piece. Here, over memory and disk."""

import pytest
import torch
from small_models import make, token_windows
from transformers import AutoModelForCausalLM

from refquant import models
from refquant.models import QuantLinear, checkpoint, dispatch

pytest.importorskip("accelerate")
IDS = token_windows(3, 16)
MAP = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
MAP |= {"model.norm": "disk", "model.rotary_emb": "cpu", "lm_head": "disk"}


@pytest.mark.parametrize(("method", "options"), [("gptq", {"act_order": True}), ("awq", {}), ("rtn", {})])
@pytest.mark.filterwarnings("ignore")  # of accelerate
def test_a_model_partly_on_disk_is_quantized_to_the_same_numbers(tmp_path, method, options):
    make("llama-gqa").save_pretrained(tmp_path / "source")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "source", dtype=torch.float32)
    spread = AutoModelForCausalLM.from_pretrained(
        tmp_path / "source", dtype=torch.float32, device_map=MAP, offload_folder=tmp_path / "offload"
    )
    assert [dispatch.is_offloaded(block.mlp.up_proj) for block in spread.model.layers] == [False, True]
    assert dispatch.is_offloaded(spread.lm_head)
    reports = [models.quantize(model, method, "int4-g32", IDS, **options) for model in (whole, spread)]
    assert reports[0].layers == reports[1].layers
    assert reports[0].model_bytes == reports[1].model_bytes
    assert all(m._dense is None for m in spread.modules() if isinstance(m, QuantLinear))
    with torch.no_grad():
        ids = torch.from_numpy(IDS)
        torch.testing.assert_close(spread(ids).logits, whole(ids).logits, rtol=0, atol=0)
    for model, name in ((whole, "one"), (spread, "two")):
        checkpoint.save(model, tmp_path / name, "gptq")
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
