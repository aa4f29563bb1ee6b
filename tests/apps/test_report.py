"""The report page: what stands on it, that it needs nothing from outside, and that nothing on it can become code."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup

from apps import report, views
from llm_core.pipeline import PIPELINE, VERBS, stage
from tasks.record import flatten
from tasks.workspace import Workspace

EVIL = "<script>alert(1)</script><img src=http://evil.example/x.png onerror=alert(2)>"


def interval(task: str, who: str, value: float) -> dict[str, Any]:
    return {"task": task, "who": who, "value": value, "low": value - 0.03, "high": value + 0.03, "prompts": 800}


def metrics_of(verb: str) -> dict[str, float]:
    return {
        "acquire": {"pages": 431.0, "dialogues": 16600.0},
        "clean": {"documents": 391.0},
        "pretrain": {"parameters": 2228000.0, "bits_per_byte": 1.6123},
        "evaluate": {"chat_greedy_accuracy": 0.47, "aligned_greedy_accuracy": 0.52, "chat_choice_accuracy": 0.36},
    }.get(verb, {"steps": 200.0})


def tables_of(verb: str) -> dict[str, list[dict[str, Any]]]:
    source = {"source": "python", "kind": "embedded", "licence": "PSF-2.0", "pages": 431.0}
    accuracies = [
        interval("greedy_accuracy", "chat", 0.47),
        interval("greedy_accuracy", "aligned", 0.52),
        {"task": "greedy_accuracy", "who": "baseline: constant", "value": 0.08, "low": None, "high": None},
    ]
    gain = {"task": "greedy_accuracy", "who": "aligned - chat", "value": 0.05, "low": -0.01, "high": 0.11}
    return {
        "acquire": {"sources": [source, {"source": EVIL, "kind": "files", "licence": EVIL, "documents": 2.0}]},
        "clean": {
            "funnel": [
                {"source": "python", "what": "documents", "in": 430, "kept": 391},
                {"source": "problems", "in": 100, "kept": 100},
            ],
            "reasons": [
                {"source": "python", "what": "documents", "reason": "too_few_words", "dropped": 31},
                {"source": "python", "what": "documents", "reason": "duplicate", "dropped": 8},
            ],
            "splits": [{"what": "documents", "split": "train", "count": 350}],
            "dropped examples": [{"reason": "too_short", "title": EVIL, "url": "http://example.org/a", "words": None}],
        },
        "evaluate": {"accuracies": accuracies, "gain": [gain, gain | {"task": "sampled_accuracy"}]},
    }.get(verb, {})


def samples_of(verb: str) -> list[dict[str, str]]:
    if verb == "evaluate":
        prompts = ("What is 7 + 5?", EVIL)
        return [{"model": m, "prompt": p, "text": f"{m} says 12 {EVIL}"} for m in report.MODELS for p in prompts]
    return [{"prompt": "Return a list of", "text": "the names in"}] if verb == "pretrain" else []


def curves_of(verb: str) -> dict[str, list[tuple[int, float]]]:
    if verb not in ("pretrain", "sft", "reward", "align"):
        return {}
    loss = [(step, 8.3 * math.exp(-step / 200)) for step in range(0, 900, 9)]
    return {"train/loss": loss, "validation/loss": loss[::33], "train/learning_rate": [(0, 0.02), (900, 0.001)]}


def made_up(verb: str) -> dict[str, Any]:
    """A report as tasks.record writes it."""
    row = stage(verb)
    return {
        "stage": verb,
        "metrics": metrics_of(verb),
        "tables": tables_of(verb),
        "samples": samples_of(verb),
        "curves": curves_of(verb),
        "inputs": {need: f"{need}-digest" for need in row.needs} | dict.fromkeys(row.files.values(), "file-digest"),
        "product": f"{row.makes}-digest",
        "params": flatten(row.config().model_dump(mode="json")),
        "versions": {"python": "3.11.2", "torch": "2.12.0"},
        "run": {
            "mlflow_run_id": f"run-of-{verb}", "ended": "2026-01-02T03:04:05Z", "seconds": 12.5, "cpu_seconds": 20.0,
            "peak_rss_mb": 812.5, "git_commit": "0123456789abcdef", "build": "",
        },
    }  # fmt: skip


def verdict(promoted: bool, scores: str = "scores-digest") -> dict[str, Any]:
    check = {"name": "judged_difference", "value": 0.012, "limit": 0.0, "passed": promoted, "sentence": "by 1.2 points"}
    reason = f"aligned is {'promoted' if promoted else 'refused'}: by 1.2 points"
    difference = {"value": 0.034, "low": 0.012, "high": 0.056, "n": 800, "error": 0.01}
    judged = {"promoted": promoted, "reason": reason, "checks": [check], "difference": difference, "detectable": 0.031}
    champion = "version 2 (aligned)" if promoted else "version 1 (chat)"
    return {"scores": scores, "reason": reason, "champion": champion, "verdicts": {"aligned": judged}, "run": {}}


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    (tmp_path / "reports").mkdir()
    (tmp_path / "params.yaml").write_text("{}\n")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    return Workspace.at(tmp_path)


def fill(space: Workspace, *verbs: str, promote: dict[str, Any] | None = None) -> None:
    for verb in verbs:
        space.report(verb).write_text(json.dumps(made_up(verb)))
    if promote:
        space.report("promote").write_text(json.dumps(promote))


def page_of(space: Workspace, **states: str) -> BeautifulSoup:
    return BeautifulSoup(report.write_report(space, states).read_text(), "html.parser")


def text_of(page: BeautifulSoup, section: str) -> str:
    found = page.find(id=section)
    assert found is not None, section
    return " ".join(found.get_text(" ").split())


def test_a_whole_run_tells_everything(space: Workspace) -> None:
    fill(space, *VERBS, promote=verdict(promoted=True))
    page = page_of(space, acquire="fresh", pretrain="ran")
    assert page.h1.get_text() == "The aligned model is the new champion"
    tiles = [tile.get_text(" ") for tile in page.find_all(class_="tile")]
    assert any("391" in t and "documents kept" in t for t in tiles)
    assert any("52.0%" in t and "aligned" in t for t in tiles)
    data = text_of(page, "data")
    steps = "pages and documents fetched 431 dropped: too few words (python) 31 dropped: duplicate (python) 8"
    assert f"{steps} documents kept 391" in data
    widths = [re.search(r"width:([\d.]+)%", bar.i["style"]) for bar in page.select("#data .bar")]
    assert [round(float(width[1])) for width in widths if width] == [100, 7, 2, 91, 100]
    assert len(page.find(id="training").find_all("svg")) == 4  # loss and learning rate of pretrain and sft
    samples = page.find(id="samples")
    first = samples.find(class_="sample-row")
    assert [by.get_text() for by in first.find_all(class_="by")] == ["base", "chat", "aligned"]
    scores = text_of(page, "scores")
    assert "52.0% [49.0%, 55.0%], n 800" in scores
    assert "+5.0% [-1.0%, +11.0%]" in scores
    assert len(page.select("#scores .dot-row.baseline")) == 1
    gate = text_of(page, "gate")
    assert "judged difference 0.012 0 passed by 1.2 points" in gate
    assert "aligned - champion +3.4% [+1.2%, +5.6%], n 800" in gate
    assert "3.1 points would be found" in gate
    run = text_of(page, "run")
    assert "acquire fresh 12 s 812.5 MB 2026-01-02 03:04:05" in run
    assert "torch 2.12.0" in run
    assert "batch_sequences" in run
    lineage = text_of(page, "lineage")
    assert re.search(
        r"aligned aligned-dige.*reward reward-diges.*chat chat-digest.*raw raw-digest.*PSF-2.0: 431", lineage
    )
    assert not page.find_all(class_="absent")


def test_a_reason_stands_with_the_kind_of_text_it_dropped(space: Workspace) -> None:
    fill(space, "acquire", "clean")
    clean = made_up("clean")
    clean["tables"]["reasons"].append({"source": "qa", "what": "dialogues", "reason": "wrong_answer", "dropped": 4})
    space.report("clean").write_text(json.dumps(clean))
    documents, _, dialogues = text_of(page_of(space), "data").partition("dialogues fetched")
    assert "wrong_answer" not in documents.replace(" ", "_")
    assert "wrong_answer" in dialogues.replace(" ", "_")


@pytest.mark.parametrize("states", [{}, {"clean": "ran"}])
def test_nothing_is_loaded_and_nothing_runs(
    space: Workspace, states: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # servers of other tests leave theirs
    (space.root / ".run").mkdir()
    (space.root / ".run" / "mlflow.json").write_text('{"url": "http://127.0.0.1:5000"}')
    fill(space, *VERBS, promote=verdict(promoted=False))
    page = page_of(space, **states)
    assert not page.find_all(["script", "img", "iframe", "object", "embed", "base", "form"])
    for tag in page.find_all(True):
        assert not [name for name in tag.attrs if name.startswith("on")], tag
        for name in ("src", "href", "srcset", "data", "xlink:href", "action"):
            target = str(tag.get(name, ""))
            assert tag.name == "a" or not re.match(r"(https?:)?//", target), tag
    assert not re.search(r"url\(|@import", page.style.get_text())
    assert EVIL in text_of(page, "samples")
    links = [a["href"] for a in page.find_all("a") if not a["href"].startswith("#")]
    assert links == [f"http://127.0.0.1:5000/#/runs/run-of-{verb}" for verb in VERBS]
    anchors = {tag["id"] for tag in page.find_all(id=True)}
    assert {a["href"][1:] for a in page.find_all("a") if a["href"].startswith("#")} <= anchors


@pytest.mark.parametrize("count", range(len(VERBS)))
def test_a_part_of_a_run_says_what_is_missing(space: Workspace, count: int) -> None:
    fill(space, *VERBS[:count])
    page = page_of(space)
    assert page.h1.get_text() == "No verdict yet"
    said = " ".join(p.get_text() for p in page.find_all(class_="absent"))
    assert f"no report of {', '.join(VERBS[count:])}" in said
    assert "groundup run evaluate" in said
    assert "The gate has given no verdict" in said
    rows = page.find(id="run").find("tbody").find_all("tr")
    assert [row.find_all("td")[1].get_text() for row in rows] == ["done"] * count + ["not run"] * (len(VERBS) - count)


@pytest.mark.parametrize(
    ("told", "title"),
    [
        (verdict(promoted=False), "The gate refused the aligned model; the champion stays"),
        (verdict(promoted=True, scores="older"), "Not judged yet"),
        (verdict(promoted=False) | {"champion": "none"}, "No model passed the gate"),
        (verdict(promoted=False) | {"verdicts": {"chat": {"promoted": True, "checks": [], "detectable": None},
                                                 "aligned": {"promoted": False, "checks": [], "detectable": None}}},
         "The chat model is the first champion; the gate refused the aligned one"),
        (verdict(promoted=True) | {"verdicts": {}}, "The champion stays"),
    ],
)  # fmt: skip
def test_the_title_says_what_came_out(space: Workspace, told: dict[str, Any], title: str) -> None:
    fill(space, *VERBS, promote=told)
    assert page_of(space).h1.get_text() == title


def test_what_was_made_from_an_earlier_product_is_marked(space: Workspace) -> None:
    fill(space, *VERBS)
    old = made_up("sft") | {"inputs": {"base": "another-base", "shards": "shards-digest"}}
    space.report("sft").write_text(json.dumps(old))
    page = page_of(space)
    assert "base another-base (an earlier one" in text_of(page, "lineage")
    assert len(page.select("#lineage .warn")) == 1


def test_settings_that_differ_from_the_default_stand_out(space: Workspace) -> None:
    fill(space, *VERBS)
    changed = made_up("pretrain")
    changed["params"]["evaluate_every"] = "17"
    space.report("pretrain").write_text(json.dumps(changed))
    page = page_of(space)
    assert [bold.get_text() for bold in page.select("#run b:not(.stage)")] == ["17"]


def test_settings_that_matter_exist() -> None:
    assert list(report.SETTINGS_THAT_MATTER) == list(VERBS)
    for row in PIPELINE:
        names = flatten(row.config().model_dump(mode="json"))
        for key in report.SETTINGS_THAT_MATTER[row.verb]:
            assert any(name == key or name.startswith(f"{key}.") for name in names), f"{row.verb}.{key}"


def test_equal_reports_give_equal_bytes(space: Workspace) -> None:
    fill(space, *VERBS, promote=verdict(promoted=True))
    first = report.write_report(space).read_bytes()
    assert report.write_report(space).read_bytes() == first


def test_versions_that_differ_name_their_stages(space: Workspace) -> None:
    fill(space, "acquire", "clean")
    space.report("clean").write_text(json.dumps(made_up("clean") | {"versions": {"torch": "2.11.0"}}))
    assert "torch 2.12.0 (acquire), 2.11.0 (clean)" in text_of(page_of(space), "run")


def test_the_page_is_light_to_make(space: Workspace) -> None:
    fill(space, *VERBS, promote=verdict(promoted=True))
    code = (
        "import sys; from pathlib import Path; from apps.report import write_report; "
        "from tasks.workspace import Workspace; write_report(Workspace.at(Path(sys.argv[1]))); "
        "print([m for m in ('torch', 'mlflow', 'prefect', 'dvc', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, space.root], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tables_take_the_form_their_columns_ask_for() -> None:
    assert views.view("t", [{"reason": "short", "documents": 3}, {"reason": "long", "documents": 1}]).kind == "bars"
    assert views.view("t", [{"a": "x", "n": 3, "m": 1.5}]).rows == (("x", "3", "1.5"),)
    assert views.view("t", [{"a": "x", "n": None}]).rows == (("x", "–"),)
    gaps = views.view("t", [{"n": 2, "m": 1, "source": "x"}, {"n": 3, "source": "y"}])
    assert (gaps.columns, gaps.rows) == (("source", "n", "m"), (("x", "2", "1"), ("y", "3", "–")))
    shown = views.view("t", [interval("a", "chat", 0.4), interval("a", "aligned", 0.5), interval("b", "chat", 0.1)])
    assert [(scale.title, len(scale.dots)) for scale in shown.scales] == [("a", 2), ("b", 1)]
    dot = shown.scales[0].dots[0]
    assert (dot.label, dot.text) == ("chat", "40.0% [37.0%, 43.0%], n 800")
    assert (round(dot.at, 3), round(dot.low, 3), round(dot.high, 3)) == (0.4, 0.37, 0.43)
    wide = views.view("t", [{"who": "base", "value": 1.8, "low": 1.6, "high": 2.0}]).scales[0]
    assert (wide.marks, round(wide.dots[0].at, 3)) == (("0", "2.2"), round(1.8 / 2.2, 3))


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (1234567.0, "1,234,567"), (0.123456, "0.1235"), (8123.7, "8,124"), (None, "–"), (True, "yes")],
)
def test_numbers_for_people(value: object, text: str) -> None:
    assert views.number(value) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" a\n\n\n \n b ", "a\n\nb"),
        (" \n\n", "(nothing but white space)"),
        ("a\nb", "a\nb"),
        ("", "(nothing but white space)"),
    ],
)
def test_a_models_words_without_heaps_of_empty_lines(text: str, shown: str) -> None:
    assert views.written(text) == shown


@pytest.mark.parametrize(("seconds", "text"), [(0.42, "0.4 s"), (61, "1 min 1 s"), (42, "42 s"), (7500, "2 h 5 min")])
def test_durations_for_people(seconds: float, text: str) -> None:
    assert views.duration(seconds) == text
