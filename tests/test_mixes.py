import json
import re
from pathlib import Path

import pytest

from refquant.errors import BadInput, UnknownName
from refquant.formats.gguf import Tensor
from refquant.ggml_types import TYPES
from refquant.methods.mix_rules import Model, is_quantized, more_bits
from refquant.methods.mixes import MIXES, describe, plan

PLANNER = json.loads((Path(__file__).parent / "data" / "llama_planner.json").read_text())["models"]


def shapes_of(name, biases=True):
    """Shapes by tensor name, from the pattern of one layer."""
    layers = PLANNER[name]["model"][1]
    every = {
        pattern.replace("*", str(i)): tuple(shape)
        for pattern, shape in PLANNER[name]["shapes"].items()
        for i in (range(layers) if "*" in pattern else [0])
    }
    return every if biases else {key: shape for key, shape in every.items() if not key.endswith(".bias")}


def planned(name, mix, **options):
    return plan(shapes_of(name), mix, Model(*PLANNER[name]["model"]), **options)


def layers_in(ranges: str) -> set[int]:
    ends = [[int(end) for end in part.split("-")] for part in ranges.split(",")]
    return {i for first, *last in ends for i in range(first, (last or [first])[0] + 1)}


@pytest.mark.parametrize("name", PLANNER)
def test_every_type_is_the_one_that_llama_cpps_own_planner_chooses(name):
    for mix, raised in PLANNER[name]["types"].items():
        for tensor, kind in planned(name, mix).types.items():
            layer = re.match(r"blk\.(\d+)\.", tensor)
            rule = raised.get(re.sub(r"^blk\.\d+", "blk.*", tensor), {})
            want = MIXES[mix][1] if is_quantized(tensor, shapes_of(name)[tensor]) else "F32"
            if isinstance(rule, str):
                want = rule
            else:
                want = next((kind for kind, where in rule.items() if int(layer[1]) in layers_in(where)), want)
            assert kind == want, (mix, tensor)


# llama.cpp, tools/quantize/README.md: Llama-3.1-8B (with its 64 rope factors)
PUBLISHED = {
    "Q2_K_S": 2.9697,
    "Q2_K": 3.1593,
    "Q3_K_S": 3.6429,
    "Q3_K_M": 3.9960,
    "Q3_K_L": 4.2979,
    "IQ4_XS": 4.4597,
    "IQ4_NL": 4.6818,
    "Q4_K_S": 4.6672,
    "Q4_K_M": 4.8944,
    "Q5_K_S": 5.5704,
    "Q5_K_M": 5.7036,
    "Q6_K": 6.5633,
    "Q8_0": 8.5008,
    "F16": 16.0005,
}
# llama-quantize's own log for Llama-2-7B
LLAMA_2 = {
    "Q2_K": 3.0062,
    "Q3_K_S": 3.4994,
    "Q3_K_M": 3.9146,
    "Q3_K_L": 4.2697,
    "Q4_K_S": 4.5779,
    "Q4_K_M": 4.8442,
    "Q5_K_S": 5.5217,
    "Q5_K_M": 5.6778,
    "Q6_K": 6.5635,
    "Q8_0": 8.5009,
}


@pytest.mark.parametrize("mix", PUBLISHED)
def test_bits_per_weight_of_llama_3_1_8b_are_the_published_ones(mix):
    shapes = {**shapes_of("llama-3.1-8b"), "rope_freqs.weight": (64,)}
    got = plan(shapes, mix, Model(*PLANNER["llama-3.1-8b"]["model"])).bits_per_weight
    assert round(got, 4) == PUBLISHED[mix]


@pytest.mark.parametrize("mix", LLAMA_2)
def test_bits_per_weight_of_llama_2_7b(mix):
    assert round(planned("llama-2-7b", mix).bits_per_weight, 4) == LLAMA_2[mix]


def test_bits_per_weight_of_tinyllama():
    layer = {"attn_q": (2048, 2048), "attn_k": (256, 2048), "attn_v": (256, 2048), "attn_output": (2048, 2048)}
    layer |= {"ffn_gate": (5632, 2048), "ffn_up": (5632, 2048), "ffn_down": (2048, 5632)}
    layer |= {"attn_norm": (2048,), "ffn_norm": (2048,)}
    shapes = {f"blk.{i}.{name}.weight": shape for i in range(22) for name, shape in layer.items()}
    shapes |= {"token_embd.weight": (32000, 2048), "output.weight": (32000, 2048), "output_norm.weight": (2048,)}
    assert round(plan(shapes, "Q4_K_M", Model("llama", 22, 32, 4)).bits_per_weight, 4) == 4.8513


def test_case_36_rows_of_896_fall_back_and_the_plan_says_so():
    got = planned("qwen2.5-0.5b", "Q4_K_M")
    assert {(choice.wanted, choice.type) for choice in got.fallbacks} == {("Q4_K", "Q5_0"), ("Q6_K", "Q8_0")}
    assert len(got.fallbacks) == 145  # six matrices of each of 24 layers, and the tied embedding; not ffn_down (4864)
    assert all(choice.shape[-1] == 896 for choice in got.fallbacks)
    assert round(got.bits_per_weight, 4) == 6.3455
    bare = plan(shapes_of("qwen2.5-0.5b", biases=False), "Q4_K_M", Model(*PLANNER["qwen2.5-0.5b"]["model"]))
    assert round(bare.bits_per_weight, 4) == 6.3440
    assert "not Q4_K: rows of 896" in str(got)
    assert "145 fallbacks" in str(got)


@pytest.mark.parametrize(
    ("width", "mix", "kinds"),
    [
        (256, "Q4_K_S", {"Q4_K", "Q6_K"}),
        (288, "Q4_K_S", {"Q5_0", "Q8_0"}),
        (288, "Q5_K_S", {"Q5_1", "Q8_0"}),
        (288, "Q3_K_S", {"Q4_0", "Q8_0"}),
        (288, "TQ2_0", {"Q4_0", "Q8_0"}),
        (288, "IQ4_XS", {"IQ4_NL", "Q8_0"}),
        (288, "Q4_0", {"Q4_0", "Q6_K"}),
        (250, "Q4_K_S", {"F16"}),
        (250, "F16", {"F16"}),
    ],
)
def test_case_36_what_replaces_a_type_that_rows_cannot_hold(width, mix, kinds):
    shapes = {"blk.0.attn_q.weight": (8, width), "output.weight": (8, 512 if kinds == {"Q4_0", "Q6_K"} else width)}
    got = plan(shapes, mix)
    assert set(got.types.values()) == kinds
    assert got.nbytes == sum(TYPES[got.types[name]].nbytes(shape) for name, shape in shapes.items())


def test_case_36_a_type_without_fallback_is_refused_by_name():
    with pytest.raises(BadInput, match=r"blk\.0\.attn_q\.weight: rows of 250 .* 32 \(Q4_0\)"):
        plan({"blk.0.attn_q.weight": (8, 250)}, "Q4_0")


def test_more_bits_in_32_layers():
    assert [i for i in range(32) if more_bits(i, 32)] == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


# llama-quant.cpp, the branches on has_imatrix: the first eighth of ffn_down
@pytest.mark.parametrize(
    ("mix", "without", "with_it"),
    [("IQ4_XS", 4, 0), ("IQ4_NL", 4, 0), ("Q4_0", 0, 4), ("Q5_0", 0, 4), ("Q4_K_M", 0, 0)],
)
def test_an_importance_matrix_changes_ffn_down_in_four_mixes(mix, without, with_it):
    raised = {"IQ4_XS": "Q5_K", "IQ4_NL": "Q5_K", "Q4_0": "Q4_1", "Q5_0": "Q5_1", "Q4_K_M": "Q5_K"}[mix]
    for importance, count in ((False, without), (True, with_it)):
        kinds = planned("llama-2-7b", mix, importance=importance).types
        assert [kinds[f"blk.{i}.ffn_down.weight"] for i in range(32)].count(raised) == count


def test_pure_gives_one_type_and_q2_k_s_needs_importance():
    kinds = planned("llama-2-7b", "Q4_K_M", pure=True).types
    assert {kind for name, kind in kinds.items() if "norm" not in name} == {"Q4_K"}
    needing = [choice for choice in planned("llama-2-7b", "Q2_K_S").choices if choice.needs_importance]
    assert {choice.type for choice in needing} == {"Q2_K"}
    assert "token_embd.weight" not in {choice.name for choice in needing}
    assert not any(choice.needs_importance for choice in planned("llama-2-7b", "Q2_K").choices)


def test_overrides_and_given_types():
    tensors = {
        "blk.0.attn_q.weight": Tensor("", (8, 256), "F16", None),
        "blk.0.attn_q_norm.weight": Tensor("", (8, 256), "F16", None),
        "blk.0.attn_k.weight": (8, 288),
        "output.weight": (8, 256),
    }
    kinds = plan(tensors, "Q4_K_M", overrides={"attn_[qk]": "Q3_K", "attn_q": "Q8_0"}).types
    assert kinds == {
        "blk.0.attn_q.weight": "Q3_K",
        "blk.0.attn_q_norm.weight": "F16",
        "blk.0.attn_k.weight": "Q4_0",
        "output.weight": "Q6_K",
    }
    with pytest.raises(UnknownName, match="Q4_K_M"):
        plan(tensors, "Q4_K_X")
    with pytest.raises(UnknownName, match="Q4_K"):
        plan(tensors, "Q4_K_M", overrides={"attn": "Q9"})


def test_a_model_is_described_by_its_metadata():
    metadata = {"general.architecture": "llama", "llama.block_count": 80, "llama.attention.head_count": 64}
    assert describe(metadata) == Model("llama", 80, 64, 64, 0)
    metadata |= {"llama.attention.head_count_kv": [8, 8], "llama.expert_count": 8}
    assert describe(metadata) == Model("llama", 80, 64, 8, 8)
    assert describe(metadata).is_70b
    assert describe(metadata).gqa == 8


def test_the_table_is_printed_with_its_total():
    text = str(plan({"blk.0.attn_q.weight": (8, 256), "output_norm.weight": (256,)}, "Q4_K_M"))
    assert re.search(r"blk\.0\.attn_q\.weight +8x256 +Q4_K +4\.5000 +1,152\n", text)
    assert text.endswith("Q4_K_M: 2,176 bytes, 7.5556 bits per weight; 1 Q4_K, 1 F32")
