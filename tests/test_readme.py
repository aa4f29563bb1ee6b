"""The README keeps its word: every command exists and is run by some test, every setting is valid, every link leads on.

The commands of the console blocks are run in the README's order, in a workspace of tiny size.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import typer
import yaml

from llm_core.pipeline import PIPELINE
from tasks import experiments, params, tracking
from tasks.registry import Registry
from tasks.runner import child_environment
from tasks.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DOCS = ("ARCHITECTURE", "data", "evaluation", "feedback", "operate", "release", "serve")
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in DOCS), ROOT / "benchmarks" / "README.md")

STORY = {
    "groundup --help": r"Build a language model from the ground up",
    'groundup generate "What is 7 plus 5?"': r"\S",
    'groundup generate --model models/base --continue "Return a list of"': r"\S",
    "groundup status": r"pretrain +fresh",
    "groundup crawl-check https://handbook.example.org/": r"handbook\.example\.org cannot be resolved",
    "groundup extract http://pydoc.localhost/library/json.html": r"by +rule.*trafilatura",
    "groundup status clean --dropped all --limit 5": r"reason",
    "groundup run": r"pretrain fresh.*gate: ",
    "groundup refresh": r"the raw data is unchanged: 0 new, 0 changed, 0 gone, \d+ unchanged pages",
    "groundup run clean": r"clean fresh, tokenize skipped",
    "groundup run --force evaluate": r"align fresh, evaluate ran",
    "groundup accept pretrain": r"pretrain is fresh as it stands",
    "groundup run --set pretrain.steps=300 --name short": r"short: .*tokenize restored.*evaluate ran",
    "groundup status --run short": r"evaluate +fresh",
    "groundup compare main short": r"params.*results.*pretrain bits_per_byte",
    "groundup adopt short": r"now those of short",
    "groundup plan --hours 1": r"tokens.*Hoffmann",
    "groundup plan --hours 8 --device H100 --apply evening": r"H100.*tokens",
    "groundup run --preset tiny": r"tiny: .*gate: experiments are not promoted",
    "dvc status": r"up to date",
    "groundup up": r"worker: http",
    "groundup doctor": r"ok +params.yaml",
    "groundup sync": r"nothing was waiting",
    "groundup feedback": r"gate: ",
    "groundup export exported --format hf": r"exported: hf, from champion",
    "groundup promote": r"gate: ",
    "groundup rollback": r"champion is version \d+ \((chat|aligned)\) again",
    "groundup lineage champion": r"documents.*http://pydoc\.localhost/",
    "groundup lineage http://pydoc.localhost/library/json.html": r"models saw them.*base",
    "groundup down": r"stopped worker",
}
"""Run below in the README's own order, in a workspace of tiny size, and what they must print."""

LISTENING = {"groundup serve": "/health", "groundup chat": "/"}
"""Run below until they answer: each prints its address, and this path of it is asked for."""

EXIT_CODES = {"groundup crawl-check https://handbook.example.org/": 1}
"""Tests have no network: the crawl of that page would not be allowed."""

CHEAPER = {"pretrain.steps=300": "evaluate.seed=3"}
"""Stands for the README's setting where that would train again: the same path, a later stage."""

DRY = {
    "make run": r"groundup run",
    "make test": r"pytest",
    "make repro": r"dvc repro",
    "make check": r"ruff check.*mypy.*lint-imports.*tasks\.dvcfile --check",
    "make soak": r"pytest -m soak",
}
"""Run with `make -n`: what they start is run elsewhere (the job by tests/flows, these tests by `make test`)."""

SOAK = {"groundup scaling --minutes 5", "groundup run --preset showcase", "groundup run --preset seed"}
"""Run by the tests that take longer, at the end of this file."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [line[2:] for line in lines if line.startswith("$ ")]


def mentioned() -> list[str]:
    """Commands between backticks in running text: `groundup down`, `make check`, `python -m tasks.readme`."""
    text = "\n".join(page.read_text() for page in PAGES)
    return sorted(set(re.findall(r"`((?:groundup |make |python -m |python docs/)[^`<]*)`", text)))


ALL = [*dict.fromkeys([*commands(), *mentioned()])]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("command", ALL)
def test_every_command_exists(command: str) -> None:
    words = shlex.split(command)
    match words:
        case ["groundup", *arguments]:
            parse(arguments)
        case ["make", *targets]:
            assert set(targets) <= make_targets(), f"{command}: the Makefile has {sorted(make_targets())}"
        case ["python", "-m", module, *_]:
            assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), command
        case ["python", script, *_]:
            assert (ROOT / script).is_file(), command
        case [".", _] | ["dvc", "status"]:
            pass
        case _:
            pytest.fail(f"{command}: this test does not know what to make of it")


def parse(arguments: list[str]) -> None:
    """Let the command line's own parser read the arguments, without running anything."""
    from flows import cli

    group = typer.main.get_command(cli.app)
    if not arguments or arguments[0].startswith("-"):
        assert arguments in ([], ["--help"])
        return
    name, *rest = arguments
    found = group.commands.get(name)  # type: ignore[attr-defined]
    assert found, f"groundup has no command {name!r}"
    if rest:
        found.make_context(name, list(rest))


def test_the_parser_would_find_a_wrong_command() -> None:
    with pytest.raises(AssertionError, match="no command 'bake'"):
        parse(["bake"])
    with pytest.raises(Exception, match="No such option"):
        parse(["run", "--presett", "tiny"])


def test_every_command_is_run() -> None:
    assert set(commands()) - {". .venv/bin/activate"} == {*STORY, *LISTENING, *DRY, *SOAK}


@pytest.fixture(scope="module")
def built(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A tiny workspace whose gate asks for nothing, so that there are a champion and a previous one."""
    gate = {"promote": {"min_accuracy": 0.0, "min_ended": 0.0}}
    text = params.dump(params.overlay(tiny_settings(), gate))
    folder = tmp_path_factory.mktemp("readme")
    (folder / ".dvc").mkdir()
    cache = folder / ".dvc" / "cache"
    cache.symlink_to(workspace.root / ".dvc" / "cache")  # whoever ran the job at this size before has filled it
    cache.resolve().mkdir(parents=True, exist_ok=True)
    space = experiments.make_workspace(ROOT, folder, text, cache=cache)
    (folder / "presets").unlink()  # a link to the project's, where a plan would leave its preset
    shutil.copytree(ROOT / "presets", folder / "presets")
    done = run(space, "groundup run --json")
    assert json.loads(done.stdout)["promotion"]["champion"].startswith("version"), done.stdout
    registry = Registry(str(tracking.tracking_uri(space.root)))
    champion = registry.get("champion")
    assert champion is not None
    registry.point("previous", champion)
    return space


def tiny_settings() -> params.Params:
    return params.overlay(params.read(ROOT / "params.yaml"), params.read(ROOT / "presets" / "tiny.yaml"))


def run(space: Workspace, command: str) -> subprocess.CompletedProcess[str]:
    """The command in the workspace and by its code, with the environment's programs first, as after `activate`."""
    environment = child_environment(Path(os.devnull)) | {"COLUMNS": "200"}
    program = shlex.split(command)
    if program[0] == "groundup":
        program[:1] = [sys.executable, "-m", "flows.cli"]
    done = subprocess.run(program, cwd=space.root, env=environment, capture_output=True, text=True)
    assert done.returncode == EXIT_CODES.get(command, 0), f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done


@pytest.mark.parametrize("command", [command for command in dict.fromkeys(commands()) if command in STORY])
def test_the_story_of_the_readme(command: str, built: Workspace) -> None:
    actual = command
    for written, cheaper in CHEAPER.items():
        actual = actual.replace(written, cheaper)
    done = run(built, actual)
    assert re.search(STORY[command], done.stdout, re.DOTALL), done.stdout + done.stderr


@pytest.mark.parametrize("command", LISTENING)
def test_what_listens_answers_and_ends_when_it_is_told(command: str, built: Workspace) -> None:
    program = [sys.executable, "-m", "flows.cli", *shlex.split(command)[1:]]
    environment = child_environment(Path(os.devnull)) | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(program, cwd=built.root, env=environment, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            told = next((line for line in running.stdout if "http://" in line), "")
            address = re.search(r"http://[\w.:]+", told)
            assert address, f"{command} ended before it told its address"
            answer(address.group() + LISTENING[command])
            running.terminate()
            assert running.wait(60) in (0, 128 + signal.SIGTERM, -signal.SIGTERM)
        finally:
            running.kill()


def answer(url: str) -> None:
    """Wait until the address answers with status 200."""
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as got:
                assert got.status == 200
                return
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.2)


@pytest.mark.parametrize("command", DRY)
def test_make_would_do_what_the_readme_says(command: str) -> None:
    done = subprocess.run(["make", "-n", command.split()[1]], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.search(DRY[command], done.stdout, re.DOTALL), done.stdout


@pytest.mark.parametrize("snippet", blocks("yaml"))
def test_every_piece_of_settings_is_valid(snippet: str) -> None:
    params.check(params.overlay(params.read(ROOT / "params.yaml"), yaml.safe_load(snippet)), "README.md")


def test_presets_and_settings_that_are_named_exist() -> None:
    presets = {path.stem for path in (ROOT / "presets").glob("*.yaml")}
    assert set(re.findall(r"--preset ([\w-]+)", README)) == presets
    for assignment in re.findall(r"--set (\S+=[\w./-]+)", README):
        params.check(params.parse_assignments([assignment]), "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_path_in_the_architecture_exists() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    for path in re.findall(r"`((?:llm_core|tasks|flows|apps|tests|deployments|docs)/[\w/.]*)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("program", [["-m", "benchmarks.readme"], ["docs/draw_pipeline.py"]], ids=lambda p: p[-1])
def test_figures_and_picture_are_up_to_date(program: list[str]) -> None:
    done = subprocess.run([sys.executable, *program, "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_picture_shows_every_stage() -> None:
    picture = (ROOT / "docs" / "pipeline.svg").read_text()
    for row in PIPELINE:
        assert f">{row.verb}</text>" in picture
        assert f">{row.makes}</text>" in picture


def test_figures_come_from_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)  # benchmarks is no installed package
    from benchmarks import readme

    for makers in readme.PAGES.values():
        places = "".join(f"{readme.MARK.format(name)}old{readme.END.format(name)}" for name in makers)
        assert "old" not in readme.filled(places, makers, tmp_path)
    makers = readme.PAGES["README.md"]
    places = "".join(f"{readme.MARK.format(name)}old{readme.END.format(name)}" for name in makers)
    job = {
        "where": {"device": "a machine", "load_average": [0.1, 0, 0], "commit": "0123456789abcdef"},
        "load_average_after": [1.9, 1, 1], "wall_s": 301.4, "around_stages_s": 31.2, "bits_per_byte": 1.61234,
        "peak_rss_mb": {"stages_and_flow": 1500.4, "servers": 600.0}, "printed": ["main: acquire ran", "champion: x"],
        "evaluate": {"chat_greedy_accuracy": 0.4567, "aligned_greedy_accuracy": 0.5, "chat_choice_accuracy": 0.35},
    }  # fmt: skip
    (tmp_path / "main_job.json").write_text(json.dumps({"job": job, "noop": {"median_s": 6.54}}))
    told = readme.filled(places, makers, tmp_path)
    for figure in ("5 min 1 s, 31 s of it", "1,500 MB", "1.612 bits", "45.7% right", "35.0%", "6.5 s", "0123456789"):
        assert figure in told
    assert "```text\nmain: acquire ran\nchampion: x\n```" in told
    assert "--help" not in told
    assert readme.filled(told, makers, tmp_path) == told


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("preset", ["seed", "showcase"])
def test_the_larger_presets_run_through(preset: str, workspace: Workspace, tmp_path: Path, shared_data: Path) -> None:
    settings = (ROOT / "params.yaml").read_text()
    space = experiments.make_workspace(ROOT, tmp_path / "project", settings, cache=tmp_path / "cache")
    offline = f" --set tokenize.gpt2_files={shared_data / 'bpe_oracle'}" if preset == "seed" else ""
    told = json.loads(run(space, f"groundup run --json --preset {preset}{offline}").stdout)
    assert set(told["states"].values()) == {"ran"}
    assert list((space.root / "runs").glob(f"{preset}*/reports/index.html"))
