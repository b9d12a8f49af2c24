"""Claims on GGUF: k-quants, mixes, sizes, the 70B example, bandwidths of main memory."""

from refquant.bandwidth.cache import cache_bytes
from refquant.bandwidth.devices import DEVICES, dual_channel, find_device
from refquant.bandwidth.quality import published
from refquant.bandwidth.split import plan_split, workspace_bytes
from refquant.bandwidth.units import GIB
from refquant.bandwidth.weights import store
from refquant.claims.gptq import deltas, found, sources
from refquant.claims.ledger import Evidence, Finding, claim, equal, every, within
from refquant.ggml_types import ggml_type

LLAMA = "llama-3.1-8b"


def types_of(mix: str, role: str, model: str = LLAMA) -> dict[str, int]:
    """How many of a role's tensors get each type in a mix."""
    counts = {}
    for tensor in store(model, mix).tensors:
        if f".{role}.weight" in tensor.name:
            counts[tensor.format] = counts.get(tensor.format, 0) + 1
    return counts


@claim("gguf", "The K of k-quants means different precisions for different layers.")
def k_means_layers(proof: Evidence) -> Finding:
    """A k-quant format has one number of bits wherever it is used; a K mix without S, M, L variation exists."""
    bits = {name: ggml_type(name).bits_per_weight for name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")}
    plain = {t.format for t in store("llama-2-7b", "Q6_K").tensors if t.is_matrix}
    return Finding(
        f"Q4_K is one block format of {ggml_type('Q4_K').weights} weights, {bits['Q4_K']} bits, in every layer; the "
        f"mix Q6_K gives all matrices {', '.join(plain)}",
        every([len(plain) > 1]),
        {**bits, "types_in_Q6_K": len(plain)},
        "K names super-blocks with quantized scales; S, M, L name the mix over layers",
        "llama.cpp PR 1684",
    )


@claim("gguf", "Q3_K_S, _M and _L differ in the size of their groups.")
def s_m_l_are_group_sizes(proof: Evidence) -> Finding:
    """Types of ffn_down in the three mixes, and the weights in a block of each."""
    kinds = {mix: max(types_of(mix, "ffn_down"), key=types_of(mix, "ffn_down").get) for mix in _Q3}
    sizes = {mix: ggml_type(kind).weights for mix, kind in kinds.items()}
    return Finding(
        "ffn_down: " + ", ".join(f"{mix} {kind}" for mix, kind in kinds.items()),
        every([len(set(sizes.values())) > 1]),
        {f"{mix}: weights in a block": size for mix, size in sizes.items()},
        "the block is the same; M and L give more tensors a larger type",
    )


_Q3 = ("Q3_K_S", "Q3_K_M", "Q3_K_L")


@claim("gguf", "Q4_K_M holds attention Q and K and the first and last layers in 6 bits.")
def q4_k_m_raises_q_and_k(proof: Evidence) -> Finding:
    """Types that llama.cpp's mix gives to each role of Llama-3.1-8B."""
    roles = {role: types_of("Q4_K_M", role) for role in ("attn_q", "attn_k", "attn_v", "ffn_down", "ffn_up")}
    six = {role: kinds.get("Q6_K", 0) for role, kinds in roles.items()}
    return Finding(
        ", ".join(f"{role} {count} of 32" for role, count in six.items()) + " in Q6_K",
        every([six["attn_q"] == 32 and six["attn_k"] == 32]),
        {f"{role} in Q6_K": count for role, count in six.items()},
        "attn_v and ffn_down rise, in the first and last eighth and every third layer between",
        "llama-quant.cpp, reproduced tensor by tensor",
    )


@claim("gguf", "Q4_K_M spends slightly more bits than Q4_K_S.")
def q4_k_m_is_larger(proof: Evidence) -> Finding:
    """Bits per weight of both mixes on Llama-3.1-8B."""
    small, medium = (store(LLAMA, mix).bits_per_weight for mix in ("Q4_K_S", "Q4_K_M"))
    return Finding(
        f"{medium:.4f} against {small:.4f}",
        every([1 < medium / small < 1.1]),
        {"Q4_K_S": small, "Q4_K_M": medium},
        source="equal to the README of llama.cpp's quantize tool",
    )


def _bits(mix: str, claimed: float, tolerance: float = 0.01):
    def test(proof: Evidence) -> Finding:
        block = ggml_type(mix.removesuffix("_M")).bits_per_weight
        models = {name: store(name, mix).bits_per_weight for name in (LLAMA, "llama-2-7b")}
        return Finding(
            f"{models[LLAMA]:.4f} on Llama-3.1-8B, {models['llama-2-7b']:.4f} on Llama-2-7B; the block has {block:.4g}",
            every(equal(bits, claimed, tolerance) == "holds" for bits in models.values()),
            {"block": block, **models},
            "embedding, output and raised tensors are in the file too" if "_M" in mix else "each block has its scale",
        )

    test.__name__ = f"bits_of_{mix.lower()}"
    return test


for _mix, _claimed in (("Q2_K", 2.0), ("Q4_K_M", 4.5), ("Q5_K_M", 5.5), ("Q6_K", 6.0), ("Q8_0", 8.0)):
    _text = "about " if "_M" in _mix else ""
    claim("gguf", f"{_mix} has {_text}{_claimed:g} bits a weight.")(_bits(_mix, _claimed, 0.02 if _text else 0.01))


def _compression(mix: str, claimed: float, tolerance: float):
    def test(proof: Evidence) -> Finding:
        ratio = store(LLAMA, "F16").nbytes / store(LLAMA, mix).nbytes
        return Finding(f"{ratio:.2f}", equal(ratio, claimed, tolerance), {"ratio": ratio}, "of the whole file")

    test.__name__ = f"compression_of_{mix.lower()}"
    return test


claim("gguf", "Q5_K compresses roughly 3 times.")(_compression("Q5_K_M", 3, 0.1))
claim("gguf", "Q8_0 compresses 2 times.")(_compression("Q8_0", 2, 0.02))


def _loss(mix: str, statement: str, limit: float, unit: str):
    def test(proof: Evidence) -> Finding:
        items = found(proof, mix)
        low = [item.delta < limit if unit == "absolute" else item.relative < limit for item in items]
        note = "" if all(low) else "newer models, trained on more tokens a parameter, lose more"
        return Finding(_fine(items), every(low), deltas(items), note, sources(items))

    test.__name__ = f"loss_of_{mix.lower()}"
    claim("gguf", statement)(test)


_SOURCE = "llama.cpp's tables, context 512"


def _fine(items) -> str:
    return ", ".join(f"{item.delta:+.4f} {item.model}" for item in items)


_loss("Q8_0", "Q8_0 is essentially lossless: perplexity rises by less than 0.01.", 0.01, "absolute")
_loss("Q6_K", "Q6_K is very close to FP16 (we take: within 0.5 %).", 0.005, "relative")
_loss("Q5_K_M", "Q5_K is near FP16 for most tasks (we take: within 1 %).", 0.01, "relative")
_loss("Q4_K_M", "Q4_K_M keeps good quality (we take: within 3 %).", 0.03, "relative")
_loss("Q3_K_M", "Q3_K is of marginal quality, fit for simple tasks (we take: within 5 %).", 0.05, "relative")


@claim("gguf", "A 70B model in Q4_K_M takes about 40 GB.")
def seventy_b_takes_40_gb(proof: Evidence) -> Finding:
    """Planned bytes of three models of that class, within 10 % of 40e9."""
    sizes = {name: store(name, "Q4_K_M").nbytes / 1e9 for name in ("llama-2-70b", "llama-3.1-70b", "qwen2.5-72b")}
    return Finding(
        ", ".join(f"{size:.1f} GB {name}" for name, size in sizes.items())
        + f" ({sizes['llama-3.1-70b'] * 1e9 / GIB:.1f} GiB for Llama-3.1)",
        within(sizes.values(), 36, 44),
        sizes,
        "Llama's 70B models; larger vocabularies and widths cost more",
    )


@claim("gguf", "It runs on 24 GB of VRAM and 64 GB of RAM, the card taking the layers that fit.")
def seventy_b_runs_split(proof: Evidence) -> Finding:
    """The split of Llama-3.1-70B in Q4_K_M on an RTX 4090 and two channels of DDR5-5600, context 4096."""
    card, ram = find_device("rtx-4090"), find_device("ddr5-5600")
    split = plan_split(store("llama-3.1-70b", "Q4_K_M"), card, ram, context=4096, cpu_memory=64 * GIB)
    return Finding(
        f"{split.gpu_layers} of {split.most_layers} layers on the card ({split.gpu.nbytes / 1e9:.1f} GB), "
        f"{split.cpu.nbytes / 1e9:.1f} GB in RAM, at most {split.tokens_per_second:.1f} tokens a second",
        every([0 < split.gpu_layers, split.cpu.nbytes <= 64 * GIB]),
        {
            "gpu_layers": split.gpu_layers,
            "gpu_gb": split.gpu.nbytes / 1e9,
            "cpu_gb": split.cpu.nbytes / 1e9,
            "tokens_per_second": split.tokens_per_second,
            "cpu_share_of_time": split.cpu.seconds / split.seconds,
        },
        f"{100 * split.cpu.seconds / split.seconds:.0f} % of the time is main memory",
    )


@claim("gguf", "A 70B model runs on a MacBook with 64 GB of unified memory.")
def seventy_b_on_a_macbook(proof: Evidence) -> Finding:
    """Weights, cache of 4096 tokens and workspace against the three quarters that macOS lets the GPU have."""
    weights = store("llama-3.1-70b", "Q4_K_M")
    need = weights.nbytes + cache_bytes(weights.shape, 4096) + workspace_bytes(weights)
    room = 0.75 * find_device("m1-max").memory
    return Finding(
        f"{need / 1e9:.1f} GB of the {room / 1e9:.1f} GB that the GPU may use",
        every([need <= room, weights.shape.parameters > 65e9]),
        {"needed_gb": need / 1e9, "room_gb": room / 1e9},
        "in Q4_K_M; the limit of 75 % is macOS's default (recommendedMaxWorkingSetSize) and can be raised",
    )


@claim("gguf", "DDR5 reads at about 50 to 80 GB/s.")
def ddr5_bandwidth(proof: Evidence) -> Finding:
    """Peaks of the JEDEC speeds 4800 to 6400, one and two channels."""
    peaks = {
        f"{channels} x DDR5-{speed}": dual_channel(speed, channels) / 1e9
        for channels in (1, 2)
        for speed in (4800, 5600, 6400)
    }
    return Finding(
        f"{min(peaks.values()):.1f} to {max(peaks.values()):.1f} GB/s at the pins, two channels of 5600: "
        f"{peaks['2 x DDR5-5600']:.1f}",
        within(peaks.values(), 50, 80),
        peaks,
        "fits what two channels reach in practice (some 80 % of the peak); servers have 8 to 12 channels",
        "JEDEC JESD79-5: 8 bytes a transfer and channel",
    )


@claim("gguf", "An A100's HBM reads at about 2 TB/s.")
def a100_bandwidth(proof: Evidence) -> Finding:
    """Datasheet bandwidths of the three A100s within 5 % of 2e12."""
    peaks = {name: device.bandwidth / 1e12 for name, device in DEVICES.items() if name.startswith("a100")}
    return Finding(
        ", ".join(f"{value:.3f} {name}" for name, value in peaks.items()),
        within(peaks.values(), 1.9, 2.1),
        peaks,
        "the 80 GB cards",
        "NVIDIA A100 datasheet",
    )


@claim("gguf", "CPU inference is much slower than GPU inference for large models.")
def cpu_is_much_slower(proof: Evidence) -> Finding:
    """Bandwidth of an A100 over two channels of DDR5-5600."""
    ratio = find_device("a100").bandwidth / find_device("ddr5-5600").bandwidth
    return Finding(
        f"{ratio:.0f} times less bandwidth", every([ratio > 5]), {"ratio": ratio}, source="datasheet and JEDEC peaks"
    )


@claim("gguf", "Q4_K_M is the sweet spot of quality for its bytes.")
def q4_k_m_is_on_the_frontier(proof: Evidence) -> Finding:
    """No mix with fewer bits loses less on Llama-3-8B, and one step down costs more a bit than one step up gains."""
    points = {
        mix: (store(LLAMA, mix).bits_per_weight, next(q.relative for q in published(mix) if q.model == "llama-3-8b"))
        for mix in ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0")
    }
    bits, loss = points["Q4_K_M"]
    beaten = [mix for mix, (b, l) in points.items() if b < bits and l <= loss]
    down, up = (abs((points[mix][1] - loss) / (points[mix][0] - bits)) for mix in ("Q3_K_M", "Q5_K_M"))
    return Finding(
        f"a bit less costs {100 * down:.1f} % of perplexity, a bit more gains {100 * up:.1f} %",
        every([not beaten, down > 2 * up]),
        {"loss_a_bit_down": down, "gain_a_bit_up": up, "better_and_smaller": len(beaten)},
        source=_SOURCE,
    )
