"""The ledger: every row rests on numbers, verdicts come from the rules, and the known corrections are found."""

import json
import math

import numpy as np
import pytest

from refquant import claims, dequantize, quantize
from refquant.claims import ledger, measure
from refquant.cli import main
from refquant.errors import BadInput, UnknownName

VERDICTS = {ledger.HOLDS, ledger.CONDITIONS, ledger.CORRECTED}


@pytest.fixture(scope="module")
def rows():
    return claims.run()


def test_the_rules():
    assert ledger.equal(4.15625, 4.25, 1e-3) == ledger.CORRECTED
    assert ledger.equal(4.249, 4.25, 1e-3) == ledger.HOLDS
    assert ledger.equal(math.nan, 1, 0.5) == ledger.CORRECTED
    assert ledger.every([True, True]) == ledger.HOLDS
    assert ledger.every([True, False]) == ledger.CONDITIONS
    assert ledger.every(np.array([False, False])) == ledger.CORRECTED
    assert ledger.within([1, 2, 5], 1, 3) == ledger.CONDITIONS
    assert ledger.within([math.nan], 0, 1) == ledger.CORRECTED
    with pytest.raises(BadInput, match="at least one case"):
        ledger.every([])


def test_a_finding_needs_numbers_and_a_verdict_of_the_rules():
    with pytest.raises(BadInput):
        ledger.Finding("said", "true", {"x": 1.0})
    for numbers in ({}, {"x": math.nan}, {"x": "4"}, {"x": True}):
        with pytest.raises(BadInput):
            ledger.Finding("said", ledger.HOLDS, numbers)


def test_more_than_thirty_statements_are_tested(rows):
    assert len(rows) > 60
    assert {row.claim.topic for row in rows} == set(ledger.TOPICS)
    assert len({row.claim.statement for row in rows}) == len(rows)
    for row in rows:
        assert row.finding.verdict in VERDICTS
        assert row.finding.numbers
        assert row.finding.value
        assert row.finding.source
        if row.finding.verdict != ledger.HOLDS:
            assert row.finding.note, f"{row.claim.name} says no condition and no correction"


def test_no_verdict_is_typed_by_hand():
    """Each test must call a rule for the second argument of its Finding; none may name a verdict."""
    import ast
    import pathlib

    count = 0
    for path in pathlib.Path(claims.__file__).parent.glob("*.py"):
        if path.stem == "ledger":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding":
                verdict = node.args[1]
                assert isinstance(verdict, ast.Call), (path.name, node.lineno)
                assert verdict.func.id in ("equal", "every", "within"), (path.name, node.lineno)
                count += 1
            if isinstance(node, ast.Name):
                assert node.id not in ("HOLDS", "CONDITIONS", "CORRECTED"), (path.name, node.lineno)
    assert count > 50


# ALGORITHMS, section 2: what is known to be wrong, and what is known to be right only sometimes
KNOWN = {
    "k_means_layers": ledger.CORRECTED,
    "s_m_l_are_group_sizes": ledger.CORRECTED,
    "q4_k_m_raises_q_and_k": ledger.CORRECTED,
    "bits_of_q4_k_m": ledger.CORRECTED,
    "bits_of_q5_k_m": ledger.CORRECTED,
    "bits_of_q8_0": ledger.CORRECTED,
    "table_gptq_int4": ledger.CORRECTED,
    "table_gptq_int3": ledger.CORRECTED,
    "int8_is_faster": ledger.CORRECTED,
    "serving_gets_the_full_four": ledger.CORRECTED,
    "alpha_covers_zero_to_one": ledger.CORRECTED,
    "int4_g128_is_4_25_bits": ledger.CONDITIONS,
    "gptq_is_near_lossless": ledger.CONDITIONS,
    "scales_are_always_absorbed": ledger.CONDITIONS,
    "one_percent_is_salient": ledger.CONDITIONS,
    "seventy_b_takes_40_gb": ledger.CONDITIONS,
    "loss_of_q8_0": ledger.HOLDS,
    "blocks_of_128": ledger.HOLDS,
    "seventy_b_runs_split": ledger.HOLDS,
    "awq_matches_gptq": ledger.CONDITIONS,
}


def test_the_known_corrections_are_found(rows):
    verdicts = {row.claim.name: row.finding.verdict for row in rows}
    assert {name: verdicts[name] for name in KNOWN} == KNOWN


def test_values_that_can_be_worked_by_hand(rows):
    numbers = {row.claim.name: row.finding.numbers for row in rows}
    assert numbers["table_gptq_int4"]["bits"] == 4 + (16 + 4) / 128
    assert numbers["table_gptq_int3"]["bits"] == 3 + (16 + 3) / 128
    assert numbers["nf4_is_four_bits"]["nf4_double"] == pytest.approx(4.127, abs=1e-3)  # QLoRA: 0.127 a parameter
    assert numbers["hessian_is_two_xxt"]["factor"] == pytest.approx(1 / 256, rel=1e-4)
    assert numbers["insensitive_columns_compensate_little"]["diagonal"] == pytest.approx(1 / (1 - 0.9999**2), rel=1e-6)
    assert numbers["gqa_shrinks_the_cache"]["bytes_a_token"] == 2 * 80 * 8 * 128 * 2
    assert numbers["ddr5_bandwidth"]["2 x DDR5-5600"] == pytest.approx(89.6)
    assert numbers["int8_is_faster"]["BLOOM-176B, 8 A100s"] == pytest.approx(0.945, abs=1e-3)
    assert numbers["one_percent_is_salient"]["gap_closed"] == pytest.approx(30.2 / 32.34, abs=1e-3)
    assert numbers["q4_k_m_raises_q_and_k"]["attn_v in Q6_K"] == 16


def test_measured_results_change_the_verdict():
    table = {
        "model": "tiny",
        "protocol": "llama.cpp",
        "context": 512,
        "windows": 9,
        "lines": [
            {"label": "Unquantized (BF16)", "perplexity": 10.0},
            {"label": "GPTQ int4-g128", "perplexity": 10.02},
            {"label": "AWQ int4-g128", "perplexity": 10.3},
            {"label": "RTN int4-g128", "perplexity": 10.0},
        ],
    }
    names = ["awq_matches_gptq", "rtn_degrades_at_4_bits"]
    layers = claims.evidence().layers
    before = {row.claim.name: row.finding for row in claims.run(claims.Evidence({}, layers), names)}
    after = {row.claim.name: row.finding for row in claims.run(claims.evidence(table, layers), names)}
    assert {finding.verdict for finding in before.values()} == {ledger.HOLDS}
    assert {finding.verdict for finding in after.values()} == {ledger.CONDITIONS}
    assert after["awq_matches_gptq"].numbers["measured tiny int4-g128"] == pytest.approx(-0.28)


def test_layer_statistics_of_a_model_that_is_known():
    """One input channel thirty times the others: it alone is the largest and makes nearly all of the error."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=128, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, intermediate_size=128,
        vocab_size=50, max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[7] = 30
    found = measure.layers(model, np.arange(32).reshape(2, 16), "made")
    assert found["tokens"] == 32
    assert all(len(found[key]) == 7 for key in found if key not in ("model", "tokens"))
    q = 0  # first Linear layer of the block
    assert found["input_peak_over_median"][q] > 30
    assert found["top_percent_error_share"][q] > 0.8
    assert found["weight_peak_over_median"][q] < 20
    down = -1
    assert found["top_percent_error_share"][down] < 0.2
    block = model.model.layers[0]
    with torch.no_grad():
        x = block.input_layernorm(model.model.embed_tokens(torch.arange(32))).double().numpy()
    w = block.self_attn.q_proj.weight.detach().double().numpy()
    left = dequantize(quantize(block.self_attn.q_proj.weight.detach().numpy(), "int4-g128"))
    errors = [sum((w[i, j] - left[i, j]) ** 2 for i in range(len(w))) * (x[:, j] ** 2).mean() for j in range(128)]
    assert found["top_percent_error_share"][q] == pytest.approx(errors[7] / sum(errors), abs=6e-5)


def test_names_that_do_not_exist_are_listed():
    with pytest.raises(UnknownName, match="int4_g128_is_4_25_bits"):
        claims.run(names=["nothing"])
    with pytest.raises(UnknownName, match="gguf"):
        ledger.claim("weather", "it rains")


def test_the_command_prints_a_table_and_writes_json(tmp_path, capsys):
    assert main(["claims", "--json", str(tmp_path / "ledger.json")]) == 0
    text = capsys.readouterr().out
    written = json.loads((tmp_path / "ledger.json").read_text())
    assert len(written["claims"]) == sum(written["verdicts"].values()) > 60
    for row in written["claims"]:
        assert f"[{row['verdict']}] {row['statement']}" in text
    assert main(["claims", "--only", "levels_of_3_bits", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["claims"][0]["numbers"] == {"levels": 8}
