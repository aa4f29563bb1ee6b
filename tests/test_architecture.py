"""The laws of the house: who may import whom, how large things may be, what must be typed and documented."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("flows", "tasks", "llm_core", "apps", "deployments")
ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
STAGE_FILES = {
    "data/acquire.py", "data/clean.py", "data/tokenize.py", "train/pretrain.py", "train/sft.py",
    "feedback/collect.py", "feedback/reward.py", "feedback/align.py", "evaluation/evaluate.py",
}  # fmt: skip
MECHANISM = (
    "llm_core/contract.py", "llm_core/pipeline.py", "tasks/runner.py", "tasks/run.py", "tasks/workspace.py",
    "tasks/freshness.py", "tasks/tracking.py",
)  # fmt: skip


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[str]:
    """Every imported module, with the imported names appended, as they may be modules too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_layers_and_circles() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_circles_between_files() -> None:
    modules = {name(p).removesuffix(".py").removesuffix("/__init__").replace("/", "."): p for p in FILES}
    graph = {module: {i for i in imports(path) if i in modules and i != module} for module, path in modules.items()}
    while leaves := {module for module, needs in graph.items() if not needs & graph.keys()}:
        graph = {module: needs for module, needs in graph.items() if module not in leaves}
    assert not graph, f"these import each other in a circle (or stand above one): {sorted(graph)}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_sizes(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400, f"{name(path)} is longer than 400 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{name(path)}: {node.name} is {length} lines long"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_modules_and_public_functions_are_documented_and_typed(path: Path) -> None:
    module = tree(path)
    assert ast.get_docstring(module), f"{name(path)} has no docstring"
    for node in module.body:
        public = not getattr(node, "name", "_").startswith("_")
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and public:
            assert ast.get_docstring(node), f"{name(path)}: {node.name} has no docstring"
        if isinstance(node, ast.FunctionDef) and public:
            untyped = [a.arg for a in [*node.args.args, *node.args.kwonlyargs] if a.annotation is None]
            assert not untyped, f"{name(path)}: {node.name}: no type for {untyped}"
            assert node.returns is not None, f"{name(path)}: {node.name}: no return type"


def test_only_stage_files_know_config_and_report_and_only_they_and_the_loop_emit() -> None:
    for path in (ROOT / "llm_core").rglob("*.py"):
        inside = path.relative_to(ROOT / "llm_core").as_posix()
        found = {i.rpartition(".")[2] for i in imports(path) if i.startswith("llm_core.contract.")}
        if inside in STAGE_FILES or inside in {"pipeline.py", "contract.py"}:
            continue
        assert "Report" not in found, f"{inside} knows Report, but is no stage"
        assert "Emit" not in found or inside == "train/loop.py", f"{inside} knows Emit, but is no stage"
        if not inside.startswith("settings/"):
            settings = [i for i in imports(path) if i.startswith("llm_core.settings") and i.endswith("Config")]
            assert not [i for i in settings if not i.endswith("ModelConfig")], f"{inside} knows {settings}"


def test_parts_never_import_stages() -> None:
    stages = {"llm_core." + file.removesuffix(".py").replace("/", ".") for file in STAGE_FILES}
    for path in (ROOT / "llm_core").rglob("*.py"):
        assert not stages & set(imports(path)), f"{name(path)} imports a stage"


def test_the_mechanism_stays_small() -> None:
    """Lines of code: blank lines, comments and docstrings cost nothing, so that nobody saves on explaining."""
    assert sum(code_lines(ROOT / file) for file in MECHANISM) <= 600


def code_lines(path: Path) -> int:
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    text = path.read_text()
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            lines -= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)


def test_table_signature_and_settings_agree() -> None:
    import inspect

    from llm_core.pipeline import PIPELINE

    made: set[str] = set()
    for row in PIPELINE:
        assert set(row.needs) <= made, f"{row.verb} needs what no earlier stage makes"
        made.add(row.makes)
        parameters = inspect.signature(row.load()).parameters
        keywords = {p.name for p in parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY}
        assert keywords == {*row.needs, *row.files, "out", "scratch", "emit"}, row.verb
        assert next(p.annotation for p in parameters.values()) in (row.config, row.config.__name__), row.verb
        assert all(field.description for field in row.config.model_fields.values()), (
            f"{row.verb}: a field lacks its text"
        )


def test_the_story_names_every_stage_once_in_order() -> None:
    from llm_core.pipeline import VERBS

    flow = next(node for node in tree(ROOT / "flows" / "build.py").body if isinstance(node, ast.FunctionDef))
    calls = [node.func.id for node in ast.walk(flow) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert [call for call in sorted_by_line(flow) if call in {*VERBS, "promote"}] == [*VERBS, "promote"], calls


def sorted_by_line(flow: ast.FunctionDef) -> list[str]:
    found = [n for n in ast.walk(flow) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    return [n.func.id for n in sorted(found, key=lambda n: n.lineno) if isinstance(n.func, ast.Name)]


@pytest.mark.parametrize("module", ["tasks.dvcfile", "tasks.readme"])
def test_generated_files_are_up_to_date(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_looking_at_the_table_imports_nothing_heavy() -> None:
    code = "import sys, llm_core.pipeline; print([m for m in ('torch','mlflow','prefect','dvc') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
