"""Choosing a storage by the lesson's three questions: where you serve, how much memory, how much loss you accept.

Every candidate is sized for the model at hand, its quality looked up (measured values first, published ones otherwise)
and its speed predicted. A candidate is rejected for a reason that is a number, or a fact about the programs that read
it. Those left are ranked by decode speed, which is by bytes read: the loss you named is accepted, so the fastest comes
first (`prefer="quality"` ranks by loss instead).

How much loss::

    none      unquantized
    lossless  perplexity at most 0.5 % higher
    low       at most 3 %
    medium    at most 10 %
    any       whatever

The thresholds are ours: relative, because the published tables use different protocols (the lesson's "increase < 0.1"
is 1.8 % of 5.47). Memory must hold weights, KV cache and workspace. Bytes, tokens per second.
"""

from dataclasses import dataclass, field

from refquant.bandwidth.cache import cache_bytes
from refquant.bandwidth.devices import Device
from refquant.bandwidth.quality import Quality, published
from refquant.bandwidth.roofline import step_time
from refquant.bandwidth.shapes import Shape, find_shape
from refquant.bandwidth.split import RESERVE, plan_split, workspace_bytes
from refquant.bandwidth.units import positive, show_bytes, whole
from refquant.bandwidth.weights import store
from refquant.bandwidth.work import decode_step
from refquant.errors import BadInput, UnknownName

LOSS = {"none": 0.0, "lossless": 0.005, "low": 0.03, "medium": 0.10, "any": float("inf")}
HARDWARE = ("gpu", "cpu", "hybrid")
_GPU = "vLLM, SGLang and TGI read it from GPU memory; on a CPU or across both, a GGUF file is what is read"
_LLAMA = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K")


@dataclass(frozen=True)
class Candidate:
    """A way to serve: `storage` sizes it, `quality` is its name in the quality tables."""

    label: str
    storage: str
    hardware: tuple[str, ...]
    readers: str
    note: str = ""


CANDIDATES = (
    Candidate("F16 (unquantized)", "F16", HARDWARE, "every program"),
    Candidate(
        "LLM.int8",
        "int8-row-sym",
        ("gpu",),
        "transformers with bitsandbytes",
        "saves memory, not time: published at 0.94 of bf16 (BLOOM-176B), far less below 6B",
    ),
    Candidate("AWQ int4-g128", "int4-g128", ("gpu",), "vLLM, SGLang, TGI, TensorRT-LLM"),
    Candidate("GPTQ int4-g128", "int4-g128", ("gpu",), "vLLM, SGLang, TGI, TensorRT-LLM"),
    Candidate("RTN int4-g128", "int4-g128", ("gpu",), "vLLM, SGLang"),
    Candidate("AWQ int3-g128", "int3-g128", (), "no server in wide use: AWQ's kernels are 4-bit"),
    Candidate("GPTQ int3-g128", "int3-g128", ("gpu",), "vLLM, SGLang through GPTQ's own kernels"),
    *(Candidate(mix, mix, HARDWARE, "llama.cpp, Ollama, LM Studio") for mix in _LLAMA),
)


@dataclass(frozen=True)
class Option:
    """A candidate with its numbers. `rejected` holds every reason against it; empty means that it will do."""

    candidate: Candidate
    weight_bytes: int
    total_bytes: int
    bits_per_weight: float
    quality: Quality | None
    tokens_per_second: float | None
    rejected: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """The answer: what was asked, the options that will do (best first), and the others with the reasons."""

    shape: Shape
    hardware: str
    memory: int
    loss: str
    accepted: tuple[Option, ...]
    rejected: tuple[Option, ...] = field(repr=False)


def find_quality(candidate: Candidate, shape: Shape, measured: dict[str, Quality]) -> Quality | None:
    """Measured on the model, or published for the model nearest in size; the unquantized model loses nothing."""
    if candidate.storage == "F16":
        return Quality("F16", shape.name, 1.0, 1.0, "the unquantized model")
    if candidate.label in measured:
        return measured[candidate.label]
    return next(iter(published(candidate.label, shape.parameters)), None)


def choose(
    model: str | Shape,
    memory: int,
    hardware: str = "gpu",
    loss: str = "low",
    context: int = 4096,
    batch: int = 1,
    device: Device | None = None,
    ram: Device | None = None,
    ram_memory: int | None = None,
    measured: dict[str, Quality] | None = None,
    prefer: str = "speed",
) -> Choice:
    """Answer the three questions for a model.

    Parameters
    ----------
    memory : int
        Bytes: of the GPU ("gpu", "hybrid"), or of main memory ("cpu").
    hardware : str
        gpu, cpu or hybrid.
    loss : str
        One of `LOSS`.
    context, batch : int
        Room for the KV cache.
    device, ram : Device, optional
        For a prediction of the speed; a hybrid needs both.
    ram_memory : int, optional
        Bytes of main memory of a hybrid.
    measured : optional
        `quality.measured("table.json")`.
    prefer : str
        "speed" or "quality": what ranks the options that will do.

    Raises
    ------
    UnknownName, BadInput
    """
    shape = find_shape(model)
    for kind, name, known in (("hardware", hardware, HARDWARE), ("loss", loss, LOSS), ("preference", prefer, RANKS)):
        if name not in known:
            raise UnknownName(kind, name, known)
    positive("memory (bytes)", memory)
    whole("context", context)
    whole("batch", batch)
    if hardware == "hybrid" and not (device and ram):
        raise BadInput("hybrid: give both devices, the GPU and the main memory, so that the split can be planned")
    options = []
    for candidate in CANDIDATES:
        quality = find_quality(candidate, shape, measured or {})
        reasons = _reasons(candidate, quality, hardware, loss)
        try:
            weights = store(shape, candidate.storage)
        except BadInput as problem:
            options.append(Option(candidate, 0, 0, 0.0, quality, None, (*reasons, str(problem))))
            continue
        total = weights.nbytes + cache_bytes(shape, context, batch) + workspace_bytes(weights)
        total += RESERVE if hardware == "gpu" else 0
        speed = None
        if hardware == "hybrid":
            try:
                split = plan_split(weights, device, ram, context, batch, gpu_memory=memory, cpu_memory=ram_memory)
                speed = split.tokens_per_second
            except BadInput as problem:
                reasons += (str(problem),)
        elif total > memory:
            reasons += (f"needs {show_bytes(total)}, there are {show_bytes(memory)}",)
        elif device:
            speed = step_time(decode_step(weights, context, batch), device).tokens_per_second
        options.append(Option(candidate, weights.nbytes, total, weights.bits_per_weight, quality, speed, reasons))
    accepted = sorted((option for option in options if not option.rejected), key=RANKS[prefer])
    return Choice(shape, hardware, memory, loss, tuple(accepted), tuple(o for o in options if o.rejected))


RANKS = {
    "speed": lambda option: (option.weight_bytes, option.quality.relative if option.quality else 0),
    "quality": lambda option: (option.quality.relative if option.quality else 0, option.weight_bytes),
}


def _reasons(candidate: Candidate, quality: Quality | None, hardware: str, loss: str) -> tuple[str, ...]:
    """What speaks against a candidate, before its size is known."""
    reasons = ()
    if hardware not in candidate.hardware:
        reasons += (_GPU if candidate.hardware else candidate.readers,)
    if quality is None and LOSS[loss] < float("inf"):
        reasons += ("no measured or published quality; give the result of `refquant compare --json`",)
    if quality is not None and quality.relative > LOSS[loss]:
        percent = f"{100 * quality.relative:.1f} % on {quality.model} ({quality.source})"
        reasons += (f"loses too much: perplexity + {percent}, accepted are {100 * LOSS[loss]:g} %",)
    return reasons
