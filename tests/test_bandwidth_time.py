"""Time: bytes and operations of a step, the roofline, the account of a speed-up, the CPU + GPU split."""

import itertools
import math

import pytest

from refquant.bandwidth import devices, roofline, shapes, speedup, split, work
from refquant.bandwidth.weights import store
from refquant.errors import BadInput, UnknownName

A100, CARD, RAM = (devices.find_device(name) for name in ("a100", "rtx-4090", "ddr5"))
MIB = 2**20
TINY = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2}
TINY |= {"intermediate_size": 96, "vocab_size": 100, "max_position_embeddings": 64}

# ---- work


@pytest.fixture(scope="module")
def counted():
    """Operations of a prefill of 12 tokens and of the step after it, for 2 sequences, as torch counts them."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from torch.utils.flop_counter import FlopCounterMode

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**TINY, attn_implementation="eager")
    model = transformers.LlamaForCausalLM(config).eval()
    counts = []
    past = None
    for tokens in (12, 1):
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            ids = torch.zeros(2, tokens, dtype=torch.long)
            out = model(ids, None, None, past, use_cache=True, logits_to_keep=1)  # by place: 5.24 renamed it
        past = out.past_key_values
        counts.append(counter.get_total_flops())
    return store(shapes.from_config(config), "F32"), counts


def test_operations_of_a_decode_step_are_those_that_torch_counts(counted):
    weights, (_, decode) = counted
    assert work.decode_step(weights, 12, batch=2).flops == decode


def test_operations_of_a_prefill_are_those_that_torch_counts(counted):
    """Torch multiplies the whole square of the attention, 12 * 12; a causal one needs 12 * 13 / 2."""
    weights, (first, _) = counted
    step = work.prefill(weights, 12, batch=2)
    assert step.matmul_flops + step.attention_flops * 24 / 13 == first


def test_a_decode_step_of_llama_2_7b_by_hand():
    """6,607,077,376 weights are multiplied: 32 (4 * 4096^2 + 3 * 4096 * 11008) + 32000 * 4096."""
    step = work.decode_step(store("llama-2-7b", "F16"), context=1023)
    assert step.matmul_flops == 2 * 6_607_077_376
    assert step.attention_flops == 4 * 32 * 128 * 1024 * 32
    assert step.weight_bytes == 2 * 6_607_077_376 + 4 * 65 * 4096  # norms in float32, as in a GGUF file
    assert step.cache_read == 1023 * 524_288
    assert step.cache_written == 524_288
    assert step.embedding_bytes == 2 * 4096
    inside = 4 * (4096 + 4096) + 2 * (4096 + 11008) + (11008 + 4096)
    assert step.activation_bytes == 2 * (32 * inside + 4096 + 32000)
    assert step.decoding_flops == 0


def test_a_batch_reads_the_weights_once_and_multiplies_them_for_each_sequence():
    weights = store("llama-3.1-8b", "int4-g128")
    one, eight = (work.decode_step(weights, 100, batch) for batch in (1, 8))
    assert one.weight_bytes == eight.weight_bytes
    assert eight.flops == 8 * one.flops
    assert eight.cache_read == 8 * one.cache_read
    assert one.decoding_flops == eight.decoding_flops == 2 * (8_030_261_248 - 2 * 128256 * 4096 - 65 * 4096)


def test_a_step_in_parts_is_the_whole_step():
    weights = store("llama-3.1-8b", "Q4_K_M")
    whole = work.decode_step(weights, 64, 2)
    parts = [
        work.decode_step(weights, 64, 2, blocks=range(20), output=False),
        work.decode_step(weights, 64, 2, blocks=range(20, 32)),
    ]
    for name in ("weight_bytes", "embedding_bytes", "cache_read", "cache_written", "activation_bytes"):
        assert sum(getattr(part, name) for part in parts) == getattr(whole, name), name
    for name in ("matmul_flops", "attention_flops", "decoding_flops"):
        assert sum(getattr(part, name) for part in parts) == getattr(whole, name), name


@pytest.mark.parametrize(("context", "batch"), [(-1, 1), (10, 0), (10, -2), (1.5, 1)])
def test_a_step_of_nothing_is_refused(context, batch):
    with pytest.raises(BadInput):
        work.decode_step(store("tinyllama", "F16"), context, batch)
    with pytest.raises(BadInput):
        work.prefill(store("tinyllama", "F16"), 0)


# ---- roofline


def test_the_time_is_that_of_the_slowest_part():
    device = devices.custom("round", 1000, fp16=1e15, fp32=1e12)  # 1e12 B/s

    def made(size, flops, decoding):
        return work.Work(1, size, 0, 0, 0, 0, flops, 0, decoding)

    assert roofline.step_time(made(10**12, 10**12, 10**9), device).seconds == 1
    slow = roofline.step_time(made(10**9, 2 * 10**15, 10**9), device, overhead=0.5)
    assert (slow.seconds, slow.bound, slow.tokens_per_second) == (2.5, "arithmetic", 0.4)
    decoding = roofline.step_time(made(10**9, 10**12, 3 * 10**12), device)
    assert (decoding.seconds, decoding.bound) == (3, "decoding")
    assert roofline.step_time(made(10**12, 0, 0), device, efficiency=0.5).seconds == 2
    silent = roofline.step_time(made(10**12, 10**18, 0), devices.find_device("m4-max"))
    assert silent.arithmetic is None
    assert silent.bound == "memory"


def test_llama_2_7b_on_an_a100_by_hand():
    """13,216 MB a token at 2039 GB/s: 6.48 ms, 154 tokens a second."""
    time = roofline.step_time(work.decode_step(store("llama-2-7b", "F16"), 0), A100)
    assert time.seconds == pytest.approx(13.219e9 / 2.039e12, rel=1e-3)
    assert round(time.tokens_per_second) == 154


@pytest.mark.parametrize("storage", ["F16", "int8-row", "int4-g128"])
def test_at_the_critical_batch_memory_and_arithmetic_take_the_same_time(storage):
    weights = store("llama-2-13b", storage)
    limit = roofline.critical_batch(weights, A100, 16)
    below, above = (
        roofline.step_time(work.decode_step(weights, 16, batch), A100).bound
        for batch in (math.floor(limit), math.ceil(limit))
    )
    assert (below, above) == ("memory", "arithmetic")


def test_the_rule_of_thumb_is_near_where_only_weights_count():
    assert roofline.rule_of_thumb(A100, 16) == pytest.approx(153.02, abs=0.01)  # 312 / 2.039 * 2 / 2
    assert roofline.critical_batch(store("llama-2-7b", "F16"), A100) == pytest.approx(153, rel=0.1)
    assert roofline.rule_of_thumb(A100, 4) == pytest.approx(38.25, abs=0.01)


def test_long_contexts_never_stop_being_bound_by_bandwidth():
    assert roofline.critical_batch(store("llama-2-7b", "F16"), A100, 4096) == math.inf
    assert roofline.step_time(work.decode_step(store("llama-2-7b", "F16"), 4096, 1000), A100).bound == "memory"


@pytest.mark.parametrize("options", [{"efficiency": 0}, {"efficiency": 1.1}, {"overhead": -1}, {"overhead": math.nan}])
def test_nonsense_conditions_are_refused(options):
    with pytest.raises(BadInput):
        roofline.step_time(work.decode_step(store("tinyllama", "F16"), 0), A100, **options)
    with pytest.raises(UnknownName, match="fp16, fp8, int8, fp32"):
        roofline.step_time(work.decode_step(store("tinyllama", "F16"), 0), A100, "fp4")
    with pytest.raises(BadInput):
        roofline.rule_of_thumb(A100, 0)


# ---- speed-up


def test_the_lessons_ratio():
    assert [speedup.ideal_ratio(16, bits) for bits in (16, 8, 4, 2)] == [1, 2, 4, 8]
    assert speedup.ideal_ratio(16, 4.125) == pytest.approx(3.8788, abs=1e-4)  # Marlin's README: 3.87
    with pytest.raises(BadInput, match="quantized bits"):
        speedup.ideal_ratio(16, 0)


def test_the_account_falls_with_every_fact_that_is_counted():
    lines = speedup.account(
        store("llama-2-7b", "F16"),
        store("llama-2-7b", "int4-g128"),
        CARD,
        (16, 4),
        efficiency=(0.94, 0.9),
        overhead=2.2e-3,
    )
    ratios = [line.ratio for line in lines]
    assert ratios[:2] == [4, pytest.approx(16 / 4.15625)]
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(ratios))
    assert 2 < ratios[-1] < 2.7  # TinyChat measured 2.69 at a shorter context
    with pytest.raises(BadInput, match="one model"):
        speedup.account(store("llama-2-7b", "F16"), store("llama-3-8b", "F16"), CARD)


def test_a_line_through_two_measurements_gives_back_what_made_them():
    bandwidth, overhead = speedup.fit_line((4e9, 4e9 / 9e11 + 2e-3), (13e9, 13e9 / 9e11 + 2e-3))
    assert bandwidth == pytest.approx(9e11)
    assert overhead == pytest.approx(2e-3)
    for first, second in (((4e9, 1), (4e9, 2)), ((4e9, 2), (5e9, 1)), ((4e9, 1), (40e9, 20)), ((0, 1), (1, 2))):
        with pytest.raises(BadInput):
            speedup.fit_line(first, second)


def test_the_fit_of_one_model_predicts_another():
    """TinyChat on an RTX 4090: overhead and bandwidth from Llama-2-7B give Llama-3-8B within 10 %."""
    dense, packed = (store("llama-2-7b", kind).read_bytes for kind in ("F16", "int4-g128"))
    bandwidth, overhead = speedup.fit_line((dense, 16.17e-3), (packed, 6.02e-3))
    for kind, measured in (("F16", 17.07e-3), ("int4-g128", 6.66e-3)):
        assert store("llama-3-8b", kind).read_bytes / bandwidth + overhead == pytest.approx(measured, rel=0.1)


# ---- split


def test_all_layers_of_llama_3_8b_lie_where_llama_cpps_log_says():
    """Its log for Q4_K_M, -ngl 33, n_ctx 512, ubatch 512: CPU buffer 281.81 MiB, CUDA0 buffer 4403.49 MiB, KV buffer
    64.00 MiB, CUDA0 compute buffer 258.50 MiB."""
    plan = split.plan_split(store("llama-3-8b", "Q4_K_M"), CARD, RAM, context=512)
    assert plan.gpu_layers == plan.most_layers == 33
    sizes = [plan.cpu.weight_bytes, plan.gpu.weight_bytes, plan.gpu.cache_bytes, plan.gpu.workspace_bytes]
    assert [round(size / MIB, 2) for size in sizes] == [281.81, 4403.49, 64.00, 258.50]
    assert plan.cpu.cache_bytes == 0
    assert plan.cpu.seconds == 0


def test_the_lessons_70b_on_24_gb_of_vram_and_64_gb_of_ram():
    """By hand: 24 GiB less 0.5 reserved and 0.28 GB workspace is 24.95 GB; a block has about 0.51 GB and 16.8 MB of
    cache; the output matrix 0.86 GB; so some 45 blocks, and 35 times 0.51 GB at 89.6 GB/s is 0.2 s."""
    plan = split.plan_split(store("llama-3.1-70b", "Q4_K_M"), CARD, RAM, context=4096, cpu_memory=64 * 2**30)
    assert plan.gpu_layers == 46
    assert plan.gpu.blocks == range(35, 80)
    assert plan.gpu.nbytes + split.RESERVE <= CARD.memory
    assert plan.cpu.blocks == range(35)
    assert plan.tokens_per_second == pytest.approx(1 / (35 * 0.51e9 / 89.6e9 + 23.9e9 / 1008e9), rel=0.05)
    assert plan.efficiency(2.2) == pytest.approx(2.2 / plan.tokens_per_second)
    with pytest.raises(BadInput, match=r"47 layers need .* of rtx-4090, with 25.77 GB"):
        split.plan_split(store("llama-3.1-70b", "Q4_K_M"), CARD, RAM, gpu_layers=47)


@pytest.mark.parametrize("model", ["tinyllama", "llama-3.2-1b"])
def test_nothing_is_lost_or_doubled_at_any_number_of_layers(model):
    weights = store(model, "Q4_K_M")
    tied = weights.embedding_bytes if weights.shape.tied else 0
    for n in range(weights.shape.layers + 2):
        plan = split.plan_split(weights, CARD, RAM, gpu_layers=n)
        assert plan.gpu.weight_bytes + plan.cpu.weight_bytes == weights.nbytes + (tied if n else 0)
        assert len(plan.gpu.blocks) + len(plan.cpu.blocks) == weights.shape.layers
        assert (
            plan.gpu.cache_bytes + plan.cpu.cache_bytes == 4096 * 2 * 2 * weights.shape.layers * weights.shape.kv_width
        )
        assert plan.gpu.has_output == (n > 0)
        assert len(plan.gpu.blocks) == max(n - 1, 0)
    alone = roofline.step_time(work.decode_step(weights, 4096), RAM)
    assert split.plan_split(weights, CARD, RAM, gpu_layers=0).seconds == pytest.approx(alone.seconds)


def test_more_layers_on_the_card_are_faster():
    speeds = [
        split.plan_split(store("llama-2-13b", "Q4_K_M"), CARD, RAM, gpu_layers=n).tokens_per_second
        for n in range(0, 42, 5)
    ]
    assert speeds == sorted(speeds)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"gpu_layers": 34}, r"0\.\.33"),
        ({"gpu_layers": -1}, "gpu_layers"),
        ({"context": 0}, "context"),
        ({"batch": 0}, "batch"),
        ({"cpu_memory": 10**8, "gpu_layers": 0}, "main memory must hold"),
        ({"gpu_memory": -1}, "gpu_memory"),
        ({"cpu_memory": 0}, "cpu_memory"),
        ({"reserve": -1}, "reserve"),
        ({"efficiency": (2, 1)}, "efficiency"),
    ],
)
def test_splits_that_cannot_be_say_why(options, text):
    with pytest.raises(BadInput, match=text):
        split.plan_split(store("llama-2-7b", "Q4_K_M"), CARD, RAM, **options)
    with pytest.raises(BadInput, match="gpu_memory"):
        split.plan_split(store("llama-2-7b", "Q4_K_M"), RAM, RAM)


def test_a_card_too_small_for_the_output_matrix_gets_nothing():
    plan = split.plan_split(store("llama-2-7b", "Q4_K_M"), CARD, RAM, gpu_memory=600 * MIB)
    assert plan.gpu_layers == 0
    assert plan.gpu.nbytes == 0
    assert plan.cpu.has_output
