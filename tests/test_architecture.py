"""The structure itself: imports point one way, files stay short enough to read, stems match."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "refquant"

# Each layer and what it may import besides itself. `methods` and `formats` never meet.
CORE = {"errors", "casts", "codebooks", "ggml_types", "grids", "importance", "quantized", "ops"}
BASE = CORE | {"methods", "formats"}
MAY_IMPORT = {
    "errors": set(),
    "casts": set(),
    "codebooks": {"errors"},
    "ggml_types": {"errors"},
    "importance": {"errors"},
    "inspect_block": BASE | {"inspect_file"},
    "inspect_file": BASE,
    "inspect_layout": BASE,
    "grids": {"errors"},
    "quantized": {"errors"},
    "ops": {"errors", "grids", "quantized"},
    "methods": CORE,
    "formats": CORE,
    "evaluate": BASE,
    "models": BASE | {"evaluate"},
    "compare": BASE | {"evaluate", "models"},
    "bandwidth": BASE,
    "bench": BASE | {"bandwidth", "models"},
    "claims": BASE | {"bandwidth", "models"},
    "classroom": BASE | {"course"},
    "verify": BASE | {"evaluate", "models"},
    "course": {"errors", "formats"},
    "figures": BASE | {"inspect_block", "inspect_layout", "evaluate", "bandwidth", "bench", "claims", "verify"},
    # Widgets are imported by notebooks only: no set holds them.
    "widgets": BASE | {"inspect_block", "evaluate", "models", "bandwidth", "claims", "figures"},
    "cli": BASE
    | {"inspect_file", "evaluate", "models", "compare", "bandwidth", "bench", "claims", "course", "verify"}
    | {"classroom", "figures"},
}
METHOD_LINES, MODULE_LINES = 150, 250


def modules():
    return sorted(p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.stem not in ("__init__", "__main__"))


def layer_of(path: Path) -> str:
    part = path.relative_to(ROOT).parts[0]
    return part.removesuffix(".py")


def imported_layers(path: Path) -> set[str]:
    """Layers of refquant that a module imports, at any depth of nesting; relative imports resolved."""
    package = ["refquant", *path.relative_to(ROOT).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, node.module] if node.module else base)
            names = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("refquant.")}
    return found


def code_lines(path: Path) -> int:
    """Lines that hold code: no comments, docstrings or blank lines."""
    lines = set()
    previous = tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        layout = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENDMARKER)
        if token.type not in layout:
            docstring = token.type == tokenize.STRING and previous in (
                tokenize.NEWLINE,
                tokenize.INDENT,
                tokenize.DEDENT,
            )
            if not docstring:
                lines.update(range(token.start[0], token.end[0] + 1))
        if token.type not in (tokenize.NL, tokenize.COMMENT):
            previous = token.type
    return len(lines)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_each_layer_imports_only_what_lies_below_it(path):
    layer = layer_of(path)
    assert layer in MAY_IMPORT, f"{layer} has no place in the architecture"
    names = {name for name in imported_layers(path) if name in MAY_IMPORT or (ROOT / name).is_dir()}
    assert not names - MAY_IMPORT[layer] - {layer}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_each_file_can_be_read_at_one_sitting(path):
    limit = METHOD_LINES if layer_of(path) == "methods" else MODULE_LINES
    assert code_lines(path) <= limit


def test_each_method_has_a_test_of_its_stem():
    shared = {"__init__", "__pycache__", "registry", "mix_rules"}  # the rules are the other half of mixes
    stems = {p.stem for p in (ROOT / "methods").iterdir()} - shared
    missing = [stem for stem in stems if not (ROOT.parent / "tests" / f"test_{stem}.py").exists()]
    assert not missing


def test_the_line_counter_counts_code_only(tmp_path):
    file = tmp_path / "a.py"
    file.write_text('"""Doc\nstring."""\n\n# comment\nx = 1\n\n\ndef f():\n    """Doc."""\n    return """a\nb"""\n')
    assert code_lines(file) == 4


def test_relative_imports_are_resolved(tmp_path):
    file = ROOT / "methods" / "imaginary.py"
    source = "from ..formats import bits\nfrom . import rtn\nimport refquant.models.load\n"
    node_names = set()
    original = Path.read_text
    try:
        Path.read_text = lambda self, **kw: source
        node_names = imported_layers(file)
    finally:
        Path.read_text = original
    assert node_names == {"formats", "methods", "models"}
