"""The bundled model: the stored bytes, the numbers that its card states, and the token files."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from refquant.errors import UnknownName
from refquant.models import tiny

MEASURED = json.loads((tiny.FOLDER / "measured.json").read_text())
MANIFEST = json.loads((tiny.FOLDER / "manifest.json").read_text())


def test_the_stored_weights_are_those_of_the_card():
    data = (tiny.FOLDER / "model.safetensors").read_bytes()
    assert hashlib.sha256(data).hexdigest() == MEASURED["sha256"]
    assert MEASURED["sha256"] in (tiny.FOLDER / "README.md").read_text()
    assert len(data) <= 16e6


def test_the_weights_are_finite_bfloat16_and_not_on_a_coarse_grid():
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    state = load_file(tiny.FOLDER / "model.safetensors")
    assert {t.dtype for t in state.values()} == {torch.bfloat16}
    for name, t in state.items():
        assert torch.isfinite(t.float()).all(), name
        if t.ndim == 2:
            assert t.shape[1] % 256 == 0, name
            assert min(len(row.unique()) for row in t[:8]) > t.shape[1] / 4, name  # a 4-bit grid has 16 a group


def test_evaluating_gives_the_cards_perplexity():
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    from refquant.evaluate.perplexity import score

    model = AutoModelForCausalLM.from_pretrained(tiny.FOLDER, dtype=torch.float32, local_files_only=True).eval()
    want = MEASURED["first_windows"]
    got = score(model, tiny.tokens("evaluation"), "llama.cpp", 512, windows=want["windows"])
    assert got.perplexity == pytest.approx(want["perplexity"], rel=1e-4)
    assert f"{want['perplexity']:.4f}" in (tiny.FOLDER / "README.md").read_text()
    assert sum(p.numel() for p in model.parameters()) == MEASURED["parameters"]
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_it_loads_within_a_second_once_torch_is_imported():
    pytest.importorskip("torch")
    code = (
        "import time, torch, transformers; from transformers import LlamaForCausalLM\n"
        "from transformers import AutoModelForCausalLM as A; import sys\n"
        "t = time.process_time(); A.from_pretrained(sys.argv[1], local_files_only=True); print(time.process_time() - t)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tiny.FOLDER)], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 1.0


def test_the_tokenizer_decodes_what_the_token_files_hold():
    pytest.importorskip("transformers")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.FOLDER, local_files_only=True)
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == 0
    for part in tiny.PARTS:
        ids = tiny.tokens(part)
        ends = np.flatnonzero(ids == 0)
        document = ids[ends[3] + 1 : ends[4]].tolist()
        text = tokenizer.decode(document)
        assert text.isascii()
        assert tokenizer(text)["input_ids"] == document


def test_calibration_and_evaluation_share_no_run_of_sixteen_tokens_beyond_boilerplate():
    runs = {}
    for part in tiny.PARTS:
        ids = tiny.tokens(part)
        assert ids.dtype == np.uint16
        assert ids.shape == (131072,)
        windows = np.lib.stride_tricks.sliding_window_view(ids, 16)
        runs[part] = {w.tobytes() for w in windows}
    shared = len(runs["calibration"] & runs["evaluation"])
    assert shared < 0.005 * len(runs["evaluation"])
    names = [set(MANIFEST["parts"][part]["names"]) for part in tiny.PARTS]
    assert not names[0] & names[1]


def test_held_out_documents_belong_to_their_part_by_the_recipes_rule():
    from refquant.models.tiny_recipe.clean import part_of
    from refquant.models.tiny_recipe.sources import SHARE_ALIKE

    for part in tiny.PARTS:
        names = MANIFEST["parts"][part]["names"]
        assert len(names) == MANIFEST["parts"][part]["documents"]
        assert {part_of(n) for n in names} == {part}
        assert not [n for n in names if SHARE_ALIKE.match(n)]


def test_an_unknown_part_is_named():
    with pytest.raises(UnknownName, match="training"):
        tiny.tokens("training")


def test_every_package_of_the_manifest_is_attributed():
    text = (tiny.FOLDER / "NOTICE").read_text()
    for s in MANIFEST["sources"]:
        assert s["source"] in text
        assert s["licence"] in text


@pytest.mark.parametrize(("mix", "tolerance"), [("F32", 1e-5), ("Q4_K_M", 0.005)])
def test_llama_cpp_gives_its_gguf_file_the_same_perplexity(mix, tolerance, tmp_path):
    llama = pytest.importorskip("llama")
    from refquant import evaluate, models

    path = tmp_path / "tiny.gguf"
    models.gguf.export(*models.load("tiny"), path, mix, progress=False)
    window = tiny.tokens("evaluation")[:512]
    ours = evaluate.score(models.load(str(path))[0], window, context=512)
    with llama.Llama(path) as theirs:
        theirs.feed(window[:256])
        logits = np.array([theirs.feed(window[i : i + 1]) for i in range(256, 511)], np.float64)  # after each token
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    nll = -log_probs[np.arange(255), window[257:]]
    assert ours.perplexity == pytest.approx(np.exp(nll.mean()), rel=tolerance)
