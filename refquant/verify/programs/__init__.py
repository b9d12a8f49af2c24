"""Real programs run through the kit, and the page PROGRAMS.md, which `refquant verify --programs FILE` writes anew.

Each program is an adapter: what the kit hands over, given to the program's own functions, and nothing computed beside
them. `refquant verify --impl refquant.verify.programs:gguf_py` runs one. A program that is not installed is left as the
page has it.
"""

import datetime
import importlib
import importlib.metadata
import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from refquant.errors import BadInput
from refquant.formats.files import replacing
from refquant.verify.cases import load
from refquant.verify.implementation import PythonObject
from refquant.verify.report import summary
from refquant.verify.runner import Report, run

# attribute: (title, package, module within this package, class)
PROGRAMS = {
    "xllamacpp": ("ggml in xllamacpp", "xllamacpp", "gguf_programs", "xllamacpp"),
    "libgguf": ("libgguf", "libgguf", "gguf_programs", "LibGGUF"),
    "gguf_py": ("gguf-py", "gguf", "gguf_programs", "GGUFPy"),
    "transformers_gguf": ("transformers' GGUF loader", "transformers", "gguf_programs", "TransformersGGUF"),
    "gptqmodel": ("gptqmodel", "gptqmodel", "checkpoint_programs", "GPTQModel"),
    "compressed_tensors": ("compressed-tensors", "compressed-tensors", "checkpoint_programs", "CompressedTensors"),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes", "checkpoint_programs", "BitsAndBytes"),
    "torchao": ("torchao", "torchao", "checkpoint_programs", "TorchAO"),
    "torchao_float16": ("torchao, scale_dtype=float16", "torchao", "checkpoint_programs", "TorchAOFloat16"),
    "torch": ("torch", "torch", "checkpoint_programs", "Torch"),
    "ml_dtypes": ("ml_dtypes", "ml_dtypes", "checkpoint_programs", "MLDtypes"),
}
NOTES = Path(__file__).with_name("notes.toml")
RESULTS = Path(__file__).with_name("results.json")
HEAD = """# Real programs, run through the kit

Written by `refquant verify --programs refquant/verify/PROGRAMS.md`. Every program is asked for what it offers through
its public functions; the rest of the cases is skipped. A failure is a difference from the expected result, not a
verdict: what lies behind each is said below it. Where a program made the expected bytes of a case itself, its pass
shows only that the kit hands them over rightly; the column "own" counts those.

| program | version | date | passed | of | own | operations |
| --- | --- | --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Program:
    """A program: how it is called here, its package, and how to make its adapter."""

    key: str
    title: str
    package: str
    make: Callable


def find(key: str) -> Program:
    """Return one of `PROGRAMS`."""
    if key not in PROGRAMS:
        raise BadInput(f"unknown program {key!r}; known: {', '.join(PROGRAMS)}")
    title, package, module, name = PROGRAMS[key]
    return Program(key, title, package, lambda: getattr(importlib.import_module(f"{__name__}.{module}"), name)())


def __getattr__(name: str):
    if name in PROGRAMS:
        return find(name).make()
    raise AttributeError(name)


def version(program: Program) -> str | None:
    """Version that is installed, or None."""
    try:
        return importlib.metadata.version(program.package)
    except importlib.metadata.PackageNotFoundError:
        module = importlib.util.find_spec(program.package)
        return getattr(importlib.import_module(program.package), "__version__", None) if module else None


def trial(program: Program, progress=None) -> Report:
    """Run every case against a program."""
    adapter = program.make()
    implementation = adapter if hasattr(adapter, "close") else PythonObject(adapter, name=program.title, seconds=120)
    try:
        return run(implementation, load(), progress=progress)
    finally:
        implementation.close()


def entry(program: Program, report: Report) -> dict:
    """What the page keeps of a report."""
    tried = [result for result in report.results if result.status != "skip"]
    own = [
        r for r in tried if r.status == "pass" and any(_same(program, maker) for maker in r.case.provenance["programs"])
    ]
    return {
        "version": version(program),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "passed": report.count("pass"),
        "tried": len(tried),
        "own": len(own),
        "operations": sorted({f"{result.case.op} {result.case.suite}" for result in tried}),
        "failures": [{"case": r.case.id, "message": r.message} for r in tried if r.bad],
    }


def _same(program: Program, maker: str) -> bool:
    return maker.split()[0] == program.package or f"({program.package} " in maker


def write(path) -> int:
    """Test every program that is installed and write the page; 1 where a failure has no note."""
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for key in PROGRAMS:
        program = find(key)
        if version(program) is None:
            print(f"{program.title}: not installed, left as it was")
            continue
        report = trial(program)
        known[key] = entry(program, report)
        print(summary(report))
    with replacing(RESULTS) as file:
        file.write((json.dumps(known, indent=1, sort_keys=True) + "\n").encode())
    with replacing(path) as file:
        file.write(page(known).encode())
    missing = [
        failure["case"] for key in known for failure in known[key]["failures"] if not _notes(key, failure["case"])
    ]
    for case in missing:
        print(f"no note explains {case}")
    return 1 if missing else 0


def _notes(key: str, case: str) -> list[dict]:
    from fnmatch import fnmatch

    notes = tomllib.loads(NOTES.read_text(encoding="utf-8")).get(key, [])
    return [note for note in notes if any(fnmatch(case, pattern) for pattern in note["cases"])]


def page(known: dict) -> str:
    """The page, from the results."""
    lines, details = [HEAD.rstrip("\n")], []
    for key, result in ((key, known[key]) for key in PROGRAMS if key in known):
        title = find(key).title
        operations = ", ".join(result["operations"])
        lines.append(
            f"| {title} | {result['version']} | {result['date']} | {result['passed']} | {result['tried']} | "
            f"{result['own']} | {operations} |"
        )
        if result["failures"]:
            details += ["", f"## {title} {result['version']}"]
        seen = []
        for failure in result["failures"]:
            notes = _notes(key, failure["case"])
            if notes and notes[0] in seen:
                continue
            seen += notes[:1]
            same = [f for f in result["failures"] if notes and notes[0] in _notes(key, f["case"])] or [failure]
            more = f" (and {len(same) - 1} more)" if len(same) > 1 else ""
            details += [
                "",
                f"- `{failure['case']}`{more}: {failure['message']}",
                "",
                f"  {notes[0]['note'] if notes else ''}",
            ]
            details.append(
                f"\n  `refquant verify --impl refquant.verify.programs:{key} --only {failure['case'].lower()}`"
            )
    return "\n".join([*lines, *details]) + "\n"
