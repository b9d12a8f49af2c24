"""The lesson's table, measured: quantize a model with every method, and state what each keeps and what it saves.

The rows come from the methods themselves (`methods.registry`), so a method that is added appears here by itself.
"""

import copy
import json
import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from refquant import evaluate, ops
from refquant.errors import BackendUnavailable, BadInput, RefquantError, UnknownName
from refquant.evaluate import texts
from refquant.formats.files import replacing
from refquant.methods import registry

COMPILING = 30e6  # parameters from which on a compiled path saves more time than its first compilation takes


@dataclass
class Line:
    """One measured row. Sizes in bytes, times in seconds, `kl` in nats per token; None where nothing is to compare."""

    label: str
    method: str
    bits_per_weight: float
    model_bytes: int
    perplexity: float
    perplexity_stderr: float
    perplexity_change: float | None
    perplexity_change_stderr: float | None
    kl: float | None
    kl_stderr: float | None
    top_token_agreement: float | None
    seconds: float | None
    hardware: str
    use_case: str


@dataclass
class Table:
    """The whole table, and all that is needed to make it again."""

    model: str
    protocol: str
    context: int
    windows: int
    evaluation_text: str
    calibration_text: str
    calibration_tokens: int
    notes: list[str]
    machine: dict
    lines: list[Line] = field(default_factory=list)


def compare(
    name: str = "tiny",
    methods: list[str] | None = None,
    text: str | None = None,
    calibration: str | None = None,
    windows: int = 24,
    context: int = 512,
    calibration_windows: int = 32,
    protocol: str = "llama.cpp",
    progress: bool = True,
    on_line=None,
    backend: str | None = None,
) -> Table:
    """Measure the unquantized model and every row of the methods.

    Parameters
    ----------
    name : str
        Anything that `models.load` takes.
    methods : list of str, optional
        Only the rows of these methods ("gptq"), or single rows by label ("GPTQ int4-g128").
    text, calibration : str, optional
        Files to use instead of the built-in texts. They must differ.
    on_line : callable, optional
        Called with each `Line` as soon as it is measured.
    backend : "numpy" or "numba", optional
        Who computes GPTQ and AWQ. By default Numba where it is installed and the model large enough to be worth its
        compilation. The codes are the same but for near-ties in GPTQ.

    Raises
    ------
    UnknownName, BadInput, BadFile, Unavailable, BackendUnavailable
    """
    rows = choose_rows(methods)
    if text is not None and calibration is not None and Path(text).resolve() == Path(calibration).resolve():
        raise BadInput(f"{text} would be both calibration and evaluation text; they must differ")
    import torch
    from threadpoolctl import threadpool_limits

    from refquant import models

    if windows < 1 or calibration_windows < 1:
        raise BadInput("at least one window of evaluation and of calibration is needed")
    for file in filter(None, (text, calibration)):
        texts.read(file)  # refused before a model is loaded
    model, tokenizer = models.load(name, progress=progress)
    evaluation = models.data.evaluation(name, tokenizer, text)
    learned = models.data.calibration(name, tokenizer, calibration, calibration_windows, context)
    windows = len(evaluate.cut_windows(evaluation.ids, context, windows))

    def measure(candidate, label, **options):
        bar = tqdm(total=windows, desc=f"score {label}", unit="window", disable=not progress, leave=False)
        # torch multiplies; NumPy's own BLAS threads (LLM.int8, AWQ) would spin on the cores that torch's need
        with bar, threadpool_limits(1, "blas"):
            return evaluate.score(candidate, evaluation.ids, protocol, context, windows, progress=bar.update, **options)

    bos = models.data.first_token(tokenizer)
    reference = measure(model, "unquantized", keep=True, bos=bos)
    parameters = sum(p.numel() for p in model.parameters())
    backend = backend or choose_backend(parameters)
    table = Table(
        model=name,
        protocol=protocol,
        context=context,
        windows=windows,
        evaluation_text=evaluation.name,
        calibration_text=learned.name,
        calibration_tokens=learned.ids.size,
        notes=models.caveats(name),
        machine={
            "date": time.strftime("%Y-%m-%d"),
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    )

    def add(line):
        table.lines.append(line)
        if on_line:
            on_line(line)

    add(_line("Unquantized (BF16)", "none", reference, 16.0, 2 * parameters, None, "GPU", "When memory allows"))
    for row in rows:
        candidate = copy.deepcopy(model)
        try:
            fast = backend if registry.find_method(row.method).accelerated else None
            with threadpool_limits(None if fast == "numba" else 1, "blas"):
                report = models.quantize(
                    candidate, row.method, row.grid, learned.ids, progress=progress, method_backend=fast, **row.options
                )
        except RefquantError as problem:  # such as a method that does not know this architecture
            table.notes.append(f"{row.label} left out: {problem}.")
            continue
        settings = row.options | ({"backend": backend} if fast == "numba" else {})
        options = f"{row.method}: {', '.join(f'{key} = {value}' for key, value in settings.items())}."
        if settings and options not in table.notes:
            table.notes.append(options)
        if report.fallbacks:
            table.notes.append(
                f"{row.label}: {report.fallbacks} matrices have rows that its own type cannot hold and fell back to a "
                "larger one (`refquant inspect` and the mix's plan show which)."
            )
        scores = measure(candidate, row.label, reference=reference, bos=bos)
        add(
            _line(
                row.label,
                row.method,
                scores,
                report.bits_per_weight,
                report.model_bytes,
                report.seconds,
                row.hardware,
                row.use_case,
            )
        )
    return table


def choose_backend(parameters: int) -> str:
    """Who is to compute the methods that look at activations, for a model of so many parameters."""
    if parameters >= COMPILING:
        try:
            ops.load_backend("numba")
            return "numba"
        except BackendUnavailable:
            pass
    return "numpy"


def choose_rows(methods: list[str] | None) -> list[registry.Row]:
    """Rows by method name or label, in the table's order; raise `UnknownName` for one that does not exist."""
    rows = registry.rows()
    if methods is None:
        return rows
    known = {row.method for row in rows} | {row.label for row in rows}
    for wanted in methods:
        if wanted not in known:
            raise UnknownName("method", wanted, sorted(known))
    return [row for row in rows if row.method in methods or row.label in methods]


def _line(label, method, scores, bits, size, seconds, hardware, use_case) -> Line:
    return Line(
        label=label,
        method=method,
        bits_per_weight=bits,
        model_bytes=size,
        perplexity=scores.perplexity,
        perplexity_stderr=scores.perplexity_stderr,
        perplexity_change=scores.perplexity_change,
        perplexity_change_stderr=scores.perplexity_change_stderr,
        kl=scores.kl_mean,
        kl_stderr=scores.kl_stderr,
        top_token_agreement=scores.agreement,
        seconds=seconds,
        hardware=hardware,
        use_case=use_case,
    )


HEADER = ("Method", "bits/weight", "size MB", "perplexity", "change", "KL, nats", "seconds", "Hardware", "Use case")
WIDTHS = (24, 11, 7, 14, 15, 8, 7, 12)


def render_row(cells) -> str:
    """One row of the printed table."""
    text, *numbers, hardware, use_case = cells
    middle = "  ".join(f"{cell:>{width}}" for cell, width in zip(numbers, WIDTHS[1:-1], strict=True))
    return f"{text:<{WIDTHS[0]}}  {middle}  {hardware:<{WIDTHS[-1]}}  {use_case}"


def render_line(line: Line) -> str:
    """A measured row as printed: perplexity and its change with standard errors, KL in nats, size in 10^6 bytes."""
    return render_row(
        (
            line.label,
            f"{line.bits_per_weight:.3f}",
            f"{line.model_bytes / 1e6:.1f}",
            f"{line.perplexity:.3f} ± {line.perplexity_stderr:.2f}",
            "-" if line.kl is None else f"{line.perplexity_change:+.3f} ± {line.perplexity_change_stderr:.3f}",
            "-" if line.kl is None else f"{line.kl:.4f}",
            "-" if line.seconds is None else f"{line.seconds:.1f}",
            line.hardware,
            line.use_case,
        )
    )


def render_notes(table: Table) -> str:
    """What stands under the table: protocol, texts, and what the numbers cannot say."""
    return "\n".join(
        [
            f"Perplexity: protocol {table.protocol}, {table.windows} windows of {table.context} tokens of "
            f"{table.evaluation_text}. Change and KL divergence are from the unquantized model on the same tokens; "
            "each ± is one standard error, that of the change taken token by token.",
            f"Calibration: {table.calibration_tokens} tokens of {table.calibration_text} (AWQ: the first 4096).",
            "Bits per weight are those of the quantized matrices, scales and zero-points included. The size counts "
            "what stays at 16 bits a parameter; the GGUF rows quantize the embedding and output layer as well.",
            *table.notes,
        ]
    )


def write_json(table: Table, path: str) -> None:
    """Write the table as JSON, whole or not at all."""
    with replacing(path) as file:
        file.write((json.dumps(asdict(table), indent=2) + "\n").encode())
