import functools
import importlib
import os

import ggml
import gguf
import numpy as np
import pytest
import torch
from llama import Llama
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import refquant as rq
from refquant import ops
from refquant.errors import BadFile, BadInput
from refquant.importance import ImportanceMatrix
from refquant.models import gguf as models_gguf
from refquant.models.gguf import architectures, tokenizer
from refquant.models.linear import QuantLinear

TEXT = (
    "Once upon a time there was a quantizer. It's said: 'we've 1234 codes, they'll do 56.7%'! "
    "def f(x):\n    return x ** 2  # naïve €\n\n\tThe scale, the zero-point and the group; the END. "
) * 4
# Merges learned from this cross what pre-tokenizers cut, so that each way of cutting gives other tokens.
TRAINING = [
    TEXT,
    *["1234567 12345 123 12", "I'VE don't we'll 'RE", "x!!\n\n--\r\n/a/b", "  aB Ab\n  aB Ab ABc aBC"] * 20,
]
HARD = "I'VE 1234567 reasons\r\n\n  \t to 日本語 🙂 don't; x==y!!  --> <|end|>ok <|start|> naïve  \n \n"


@functools.cache
def byte_level(name="gpt-2", bos=False):
    """A tokenizer of at most 512 tokens, trained here; `name` says how text is cut into words."""
    pattern, digits, whole = tokenizer.PRE_TOKENIZERS[name]
    built = Tokenizer(models.BPE(ignore_merges=whole))
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    steps += [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    steps += [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)]
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    special = ["<|start|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    built.train_from_iterator(TRAINING, trainer)
    built.pre_tokenizer, built.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=built, bos_token="<|start|>", eos_token="<|end|>")
    if bos:
        fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=["<|start|>", "$A"], special_tokens=[("<|start|>", 0)]
        )
    return fast


SIZES = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.08,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
ROPE_3_1 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16}
GEMMA["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
MODELS = {
    "llama": {"model_type": "llama"},
    "llama-3.1-tied": {"model_type": "llama", "rope_parameters": ROPE_3_1, "tie_word_embeddings": True},
    "llama-bias": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "head_dim": 32, "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": True},
    "gemma3": {"model_type": "gemma3_text", **GEMMA},
}


@functools.cache
def model_of(name, **sizes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{**SIZES, **MODELS[name], **sizes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    for key, parameter in model.named_parameters():
        if key.endswith(("norm.weight", "bias")):  # else norms are all alike and biases zero
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def greedy(model, ids, count):
    out, logits, past = [], [], None
    step = torch.tensor([ids])
    for _ in range(count):
        with torch.no_grad():
            result = model(step, None, None, past, use_cache=True)  # by place: transformers 5.24 renamed it
        past = result.past_key_values
        logits.append(result.logits[0, -1].numpy())
        out.append(int(logits[-1].argmax()))
        step = torch.tensor([out[-1:]])
    return out, np.array(logits)


def arrays(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


# ---- files that llama.cpp runs, and the way back


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_generates_the_same_64_tokens(tmp_path, name):
    path, model, fast = tmp_path / "a.gguf", model_of(name), byte_level()
    models_gguf.export(model, fast, path, "F32", progress=False)
    ids = fast(TEXT[:200]).input_ids
    with Llama(path) as theirs:
        assert theirs.tokenize(TEXT[:200]) == ids
        tokens, logits = theirs.greedy(ids, 64)
    want, exact = greedy(model, ids, 64)
    assert tokens == want
    assert len(set(tokens)) > 5 or model.config.tie_word_embeddings  # tied and random: it repeats itself
    assert np.abs(logits - exact).max() < 2e-3 * np.abs(exact).max()


@pytest.mark.parametrize("name", MODELS)
def test_a_float_file_comes_back_bit_for_bit(tmp_path, name):
    path, model = tmp_path / "a.gguf", model_of(name)
    models_gguf.export(model, byte_level(), path, "F32", progress=False)
    again, _ = models_gguf.load(path)
    got, want = arrays(again), arrays(model)
    assert got.keys() == want.keys()
    for key in want:
        if name == "gemma3" and key.endswith("norm.weight"):
            np.testing.assert_allclose(got[key], want[key], atol=2e-7)  # the file holds 1 + w
        else:
            assert np.array_equal(got[key], want[key]), key
    ids = torch.tensor([byte_level()(TEXT[:200]).input_ids])
    with torch.no_grad():
        np.testing.assert_allclose(again(ids).logits, model(ids).logits, atol=1e-5)
    keep = ("rope_parameters", "tie_word_embeddings", "sliding_window", "layer_types", "bos_token_id")
    for key in keep if name != "mistral" else keep[:2]:  # a Mistral becomes a Llama
        assert again.config.to_dict().get(key) == model.config.to_dict().get(key), key


@pytest.mark.parametrize(("name", "mix"), [("llama", "Q4_K_M"), ("qwen2", "Q3_K_M"), ("gemma3", "Q4_0")])
def test_quantized_files_run_in_llama_cpp_and_come_back_with_their_bytes(tmp_path, name, mix):
    path, again, dense = tmp_path / "a.gguf", tmp_path / "b.gguf", tmp_path / "c.gguf"
    model, fast = model_of(name), byte_level()
    plan = models_gguf.export(model, fast, path, mix, progress=False)
    loaded, back = models_gguf.load(path, layer=QuantLinear)
    assert sum(isinstance(m, QuantLinear) for m in loaded.modules()) == 3 * 7 + (name != "gemma3")
    # the running model has the values that gguf-py decodes
    theirs = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
    for key, value in models_gguf.gguf_to_state(rq.gguf.read(path)):
        w = rq.dequantize(value) if isinstance(value, rq.Quantized) else value
        item = architectures.of_config(model.config.to_dict())
        expected = theirs[architectures.gguf_name(key, item)]
        if name == "llama" and key.endswith(("q_proj.weight", "k_proj.weight")):
            heads = 4 if "q_proj" in key else 2
            expected = expected.reshape(heads, -1, 2, 256).swapaxes(1, 2).reshape(expected.shape)
        shift = 1 if name == "gemma3" and key.endswith("norm.weight") else 0
        assert np.array_equal(w, expected - np.float32(shift)), key
    # written again without quantizing again: the same tensors
    assert models_gguf.export(loaded, back, again, mix, progress=False).types == plan.types
    first, second = rq.gguf.read(path), rq.gguf.read(again)
    for key, tensor in first.tensors.items():
        if not (name == "gemma3" and "norm" in key):
            assert np.array_equal(tensor.data, second.tensors[key].data), key
    # the same without `layer`, as long as the weights are those of the file
    dense_model, _ = models_gguf.load(path)
    changed = dense_model.model.layers[1].mlp.up_proj.weight
    changed.mul_(2)
    models_gguf.export(dense_model, back, again, mix, progress=False)
    third = rq.gguf.read(again)
    different = {key for key in first.tensors if not np.array_equal(first.tensors[key].data, third.tensors[key].data)}
    assert {key for key in different if "norm" not in key} == {"blk.1.ffn_up.weight"}
    # llama.cpp runs the file; it rounds activations to 8 bits, so its tokens are compared on the same weights as floats
    ids = fast(TEXT[:100]).input_ids
    want, exact = greedy(loaded, ids, 64)
    with Llama(path) as program:
        near = program.feed(ids)
    assert np.corrcoef(near, exact[0])[0, 1] > 0.995
    dequantized, _ = models_gguf.load(path)
    models_gguf.export(dequantized, fast, dense, "F32", progress=False)
    with Llama(dense) as program:
        assert program.greedy(ids, 64)[0] == want


def test_importance_reaches_every_matrix_by_its_gguf_name(tmp_path):
    path, model, rng = tmp_path / "a.gguf", model_of("llama"), np.random.default_rng(0)
    matrix = ImportanceMatrix(datasets=["t"], chunk_count=1, chunk_size=8)
    names = [f"blk.{i}.{role}.weight" for i in range(3) for role in ("attn_q", "attn_v", "ffn_down")]
    for key in names:
        matrix.add(key, rng.normal(size=(8, 512 if "down" in key else 256)) * 10 ** rng.normal(size=1))
    models_gguf.export(model, byte_level(), path, "Q4_K_S", importance=matrix, progress=False)
    file, weights = rq.gguf.read(path), arrays(model)
    assert file.metadata["quantize.imatrix.entries_count"] == len(names)
    item = architectures.ARCHITECTURES["llama"]
    for key in [*names[:3], "blk.0.ffn_up.weight"]:
        w = weights[architectures.hf_name(key, item)]
        if "attn_q" in key:
            w = w.reshape(4, 2, -1, 256).swapaxes(1, 2).reshape(w.shape)
        means = matrix.means(key, w.shape[1])
        want = ggml.quantize(w, file.tensors[key].type, None if means is None else means[0])
        assert np.array_equal(file.tensors[key].data, want), key


def test_importance_is_measured_on_the_inputs_of_every_matrix():
    model, ids = model_of("llama"), np.array(byte_level()(TEXT[:300]).input_ids)[:64].reshape(2, 32)
    matrix = models_gguf.importance(model, ids, dataset="text", progress=False)
    assert len(matrix.entries) == 3 * 7
    assert (matrix.chunk_count, matrix.chunk_size, matrix.datasets) == (2, 32, ["text"])
    with torch.no_grad():
        embedded = model.model.embed_tokens(torch.from_numpy(ids)).double()
    normed = embedded / (embedded.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    first = (normed * model.model.layers[0].input_layernorm.weight).flatten(0, 1).numpy()  # float64, by hand
    for role in ("attn_q", "attn_k", "attn_v"):
        np.testing.assert_allclose(matrix.means(f"blk.0.{role}.weight", 256)[0], (first**2).mean(0), rtol=1e-5)
    assert matrix.entries["blk.2.ffn_down.weight"].counts.tolist() == [64]
    assert "output.weight" in models_gguf.importance(model, ids, output=True, progress=False).entries
    with pytest.raises(BadInput, match="chunks, context"):
        models_gguf.importance(model, ids[0])


def test_case_36_a_model_of_width_288_falls_back_and_runs(tmp_path):
    path, model = tmp_path / "a.gguf", model_of("llama", hidden_size=288, num_attention_heads=9, num_key_value_heads=3)
    plan = models_gguf.export(model, byte_level(), path, "Q4_K_M", progress=False)
    assert {(c.wanted, c.type) for c in plan.fallbacks} == {("Q4_K", "Q5_0"), ("Q6_K", "Q8_0")}
    assert plan.types == {key: tensor.type for key, tensor in rq.gguf.read(path).tensors.items()}
    loaded, fast = models_gguf.load(path)
    ids = fast(TEXT[:50]).input_ids
    with Llama(path) as program:
        assert np.corrcoef(program.feed(ids), greedy(loaded, ids, 1)[1][0])[0, 1] > 0.995


def test_a_folder_is_converted_tensor_by_tensor(tmp_path):
    path, folder = tmp_path / "a.gguf", tmp_path / "model"
    model = model_of("qwen3")
    model.save_pretrained(folder, max_shard_size="1MB")
    byte_level().save_pretrained(folder)
    models_gguf.convert(folder, path, "BF16", progress=False)
    models_gguf.export(model, byte_level(), tmp_path / "b.gguf", "BF16", name="a", progress=False)
    a, b = rq.gguf.read(path), rq.gguf.read(tmp_path / "b.gguf")
    assert a.tensors.keys() == b.tensors.keys()
    assert all(np.array_equal(a.tensors[key].data, b.tensors[key].data) for key in a.tensors)
    assert a.metadata.keys() == b.metadata.keys()
    with pytest.raises(BadFile, match=r"config\.json"):
        models_gguf.convert(tmp_path, path)


# ---- tokenizers


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("name", tokenizer.PRE_TOKENIZERS)
def test_llama_cpp_and_the_rebuilt_tokenizer_encode_alike(tmp_path, name, bos):
    path, fast = tmp_path / "a.gguf", byte_level(name, bos)
    models_gguf.export(model_of("llama"), fast, path, "F32", progress=False)
    metadata = rq.gguf.read(path).metadata
    assert metadata["tokenizer.ggml.pre"] == name
    assert metadata["tokenizer.ggml.add_bos_token"] is bos
    back = models_gguf.gguf_tokenizer(metadata)
    with Llama(path) as program:
        for text in (TEXT, HARD, *TRAINING[-4:], "a", " a", "\n\n \n", "12 345 6789"):
            ids = fast(text).input_ids
            assert program.tokenize(text) == ids, text
            assert back(text).input_ids == ids, text
    assert (back.bos_token, back.eos_token) == ("<|start|>", "<|end|>")
    assert back.decode(back(HARD, add_special_tokens=False).input_ids) == HARD


def sentencepiece_like():
    """BPE with byte fallback and all merges that scores allow, as conversions from sentencepiece have it."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    raw.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False))
    vocabulary = raw.get_vocab()
    order = sorted(vocabulary, key=vocabulary.get)
    merges = [
        (t[:j], t[j:]) for t in order[259:] for j in range(1, len(t)) if t[:j] in vocabulary and t[j:] in vocabulary
    ]
    built = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    built.normalizer = raw.normalizer
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    built.decoder = decoders.Sequence(steps)
    built.add_special_tokens([AddedToken(token, normalized=False) for token in special[:3]])
    return PreTrainedTokenizerFast(tokenizer_object=built, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_a_tokenizer_in_the_manner_of_sentencepiece(tmp_path):
    path, fast = tmp_path / "a.gguf", sentencepiece_like()
    models_gguf.export(model_of("llama", vocab_size=512), fast, path, "F32", progress=False)
    metadata = rq.gguf.read(path).metadata
    assert (metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.add_space_prefix"]) == ("llama", True)
    kinds = metadata["tokenizer.ggml.token_type"]
    assert [(kinds == kind).sum() for kind in (tokenizer.BYTE, tokenizer.UNKNOWN, tokenizer.CONTROL)] == [256, 1, 2]
    assert metadata["tokenizer.ggml.tokens"][511] == "[PAD511]"
    assert kinds[511] == tokenizer.UNUSED
    back = models_gguf.gguf_tokenizer(metadata)
    with Llama(path) as program:
        for text in (TEXT, "the scale 日本 🙂 naïve", "a  b   c", "codes"):
            ids = fast(text).input_ids
            assert program.tokenize(text) == ids, text
            assert back(text).input_ids == ids, text
            assert back.decode(ids) == text


# ---- refusals


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model_type": "gpt2"}, "known: llama, mistral"),
        ({"hidden_act": "relu"}, "llama.cpp runs llama with silu"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rotary scaling 'dynamic'"),
        ({"model_type": "gemma3_text", **GEMMA, "query_pre_attn_scalar": 99}, "scales the attention"),
        (
            {"model_type": "gemma3_text", **GEMMA, "layer_types": ["full_attention"] + ["sliding_attention"] * 2},
            "every n-th layer",
        ),
    ],
)
def test_models_that_llama_cpp_would_run_differently_are_refused(change, why):
    config = {**SIZES, "model_type": "llama", "hidden_act": "silu", "hidden_activation": "gelu_pytorch_tanh", **change}
    if config["model_type"] != "llama":
        del config["hidden_act"]
    with pytest.raises(BadInput, match=why):
        architectures.config_to_metadata(config)


def test_other_refusals_name_the_place(tmp_path):
    path, model, fast = tmp_path / "a.gguf", model_of("llama"), byte_level()
    for options, why in (({"mix": "Q2_K_S"}, "importance matrix"), ({"mix": "Q9"}, "unknown mix")):
        with pytest.raises(rq.RefquantError, match=why):
            models_gguf.export(model, fast, path, progress=False, **options)
    sources = {key: models_gguf.Source(w.shape, lambda w=w: w) for key, w in arrays(model).items()}
    broken = np.full((512, 256), np.nan, np.float32)
    sources["model.layers.1.mlp.up_proj.weight"] = models_gguf.Source(broken.shape, lambda: broken)
    with pytest.raises(BadInput, match=r"blk\.1\.ffn_up\.weight: the weights hold NaN"):
        models_gguf.write_model(model.config.to_dict(), sources, fast, path, "Q8_0", progress=False)
    sources["model.layers.1.mlp.router.weight"] = sources["lm_head.weight"]
    with pytest.raises(BadInput, match=r"model\.layers\.1\.mlp\.router\.weight has no place"):
        models_gguf.write_model(model.config.to_dict(), sources, fast, path, "Q8_0", progress=False)
    assert not list(tmp_path.iterdir())
    models_gguf.export(model, fast, path, "Q8_0", progress=False)
    file = rq.gguf.read(path)
    for metadata, tensors, why in (
        ({"general.architecture": "rwkv"}, {}, "'rwkv'; known: llama"),
        ({"llama.block_count": None}, {}, "lacks llama.block_count"),
        ({"llama.feed_forward_length": 500}, {}, r"model\.layers\.0.*has the shape"),
        ({"split.count": 3}, {}, "one part of 3"),
        ({"tokenizer.ggml.pre": "unheard-of"}, {}, "'unheard-of'; known: gpt-2"),
        ({"tokenizer.ggml.model": "t5"}, {}, "'t5' with 512 tokens"),
        ({"tokenizer.ggml.eos_token_id": 512}, {}, "eos_token_id is 512"),
        ({}, {"output_norm.weight": None}, "1 tensors are missing"),
        ({}, {"blk.0.extra.weight": np.zeros(2, np.float32)}, r"blk\.0\.extra\.weight is not a tensor"),
        ({}, {"rope_freqs.weight": np.ones(32, np.float32) * 3}, "not Llama 3.1's"),
    ):
        changed = {key: value for key, value in {**file.metadata, **metadata}.items() if value is not None}
        kept = {key: value for key, value in {**file.tensors, **tensors}.items() if value is not None}
        rq.gguf.write(tmp_path / "b.gguf", changed, kept)
        with pytest.raises(BadFile, match=why):
            models_gguf.load(tmp_path / "b.gguf")


def test_a_tokenizer_that_llama_cpp_cannot_name_is_refused():
    spec = {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}]},
        "normalizer": None,
        "model": {},
    }
    with pytest.raises(BadInput, match="no name for this pre-tokenizer"):
        tokenizer.pre_tokenizer_name(spec)
    with pytest.raises(BadInput, match="not a fast tokenizer"):
        tokenizer.tokenizer_metadata(object(), 10)
    with pytest.raises(BadInput, match="459 ids for 100 rows"):
        tokenizer.tokenizer_metadata(byte_level(), 100)


# ---- from files, in several runs


@pytest.fixture
def float_folder(tmp_path):
    folder = tmp_path / "float"
    model_of("llama").save_pretrained(folder, max_shard_size="500KB")
    byte_level().save_pretrained(folder)
    return folder


def test_a_folder_converts_to_the_file_of_the_model_in_memory(tmp_path, float_folder, monkeypatch):
    module = importlib.import_module("refquant.models.gguf.convert")  # the package has a function of that name
    monkeypatch.setattr(module, "ROW_WEIGHTS", 5000)  # 19 rows at a time, or 9
    (tmp_path / "a").mkdir()
    models_gguf.convert(float_folder, tmp_path / "a" / "m.gguf", "Q4_K_M", progress=False)
    monkeypatch.undo()
    models_gguf.export(model_of("llama"), byte_level(), tmp_path / "m.gguf", "Q4_K_M", progress=False)
    assert (tmp_path / "a" / "m.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()


@pytest.mark.parametrize("cut", [10, 20_000, 300_000, 600_000, None])
def test_an_interrupted_file_continues_to_the_same_bytes(tmp_path, float_folder, monkeypatch, cut):
    path, whole, left = tmp_path / "m.gguf", tmp_path / "whole.gguf", tmp_path / ".m.gguf.partial"
    models_gguf.convert(float_folder, whole, "Q4_K_M", name="m", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            models_gguf.convert(float_folder, path, "Q4_K_M", name="m", progress=False, resume=False)
    assert not path.exists()
    assert left.read_bytes() == whole.read_bytes()
    left.write_bytes(left.read_bytes()[:cut])
    done, original = [], ops.quantize
    monkeypatch.setattr(ops, "quantize", lambda *args, **options: done.append(args[1]) or original(*args, **options))
    models_gguf.convert(float_folder, path, "Q4_K_M", name="m", progress=False, resume=True)
    assert path.read_bytes() == whole.read_bytes()
    assert not left.exists()
    assert len(done) == 23 if cut == 10 else len(done) <= 23
    assert cut != 600_000 or 0 < len(done) < 23


def test_a_file_left_by_another_run_is_not_continued(tmp_path, float_folder):
    path, left = tmp_path / "m.gguf", tmp_path / ".m.gguf.partial"
    models_gguf.convert(float_folder, path, "Q4_K_M", progress=False)
    path.rename(left)
    with pytest.raises(BadFile, match="left by a run with other settings"):
        models_gguf.convert(float_folder, path, "Q4_K_S", progress=False, resume=True)
    data = bytearray(left.read_bytes())
    data[-100] ^= 1  # in the last tensor, output_norm: as from other weights
    left.write_bytes(data)
    with pytest.raises(BadFile, match="is not what this run makes; run without resume"):
        models_gguf.convert(float_folder, path, "Q4_K_M", progress=False, resume=True)
    assert left.read_bytes() == data
    models_gguf.convert(float_folder, path, "Q4_K_M", progress=False, resume=False)
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["m.gguf"]


def test_a_folder_without_its_parts_is_refused_by_name(tmp_path, float_folder):
    next(float_folder.glob("model-00002-of-*.safetensors")).unlink()
    with pytest.raises(BadFile, match=r"model-00002-of-.* is missing"):
        models_gguf.convert(float_folder, tmp_path / "m.gguf", progress=False)
    assert not list(tmp_path.glob("*.gguf"))
