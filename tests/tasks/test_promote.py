"""Promotion against a real MLflow store: a first champion, a better one, new prompts, a refusal, a rollback."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from llm_core import artifacts
from llm_core.contract import BadInput
from llm_core.data.shards import Shards
from llm_core.data.tokenize import run as tokenize
from llm_core.evaluation.perplexity import held_out_pages
from llm_core.evaluation.problems import held_out_problems
from llm_core.evaluation.refusal import HARMFUL, harmful_prompts
from llm_core.evaluation.rows import Row, write_rows
from llm_core.model.checkpoint import save_model
from llm_core.model.config import ModelConfig
from llm_core.model.transformer import Transformer
from llm_core.pipeline import stage
from llm_core.settings.tokenize import TokenizeConfig
from tasks import experiments, params, registry
from tasks.promote import judge_now
from tasks.workspace import Workspace

PAGE = "The module reads and writes files. It opens the file number {n}, reads each line of it and closes it again."


def dialogue(a: int, b: int) -> dict[str, Any]:
    question = f"max({a}, {b}) = ?"
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": str(max(a, b))}]
    split = "validation" if (3 * a + b) % 5 < 3 else "train"
    row = {"id": hashlib.sha256(question.encode()).hexdigest()[:32], "source": "small", "url": "", "group": question}
    return row | {"split": split, "kind": "problem", "messages": turns, "check": f"max({a}, {b})"}


@pytest.fixture(scope="module")
def space(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A tiny workspace with corpus, shards and two models of random weights."""
    folder = tmp_path_factory.mktemp("promote")
    tiny = params.overlay(params.read(root / "params.yaml"), params.read(root / "presets" / "tiny.yaml"))
    tiny["evaluate"] |= {"max_new_tokens": 4, "answers": 2, "threads": 1}
    tiny["promote"] = {"resamples": 300}
    made = experiments.make_workspace(root, folder / "project", params.dump(tiny), cache=folder / "cache")
    documents = [
        {"id": f"d{i}", "source": "small", "url": f"d{i}", "title": "", "text": PAGE.format(n=i), "language": "en",
         "licence": "CC0-1.0", "date": None, "group": f"d{i}", "split": "validation" if i % 3 == 0 else "train"}
        for i in range(12)
    ]  # fmt: skip
    with artifacts.new_product(made.product("corpus"), "corpus", {"text_bytes": 1000}) as inside:
        problems = [dialogue(a, b) for a in range(10) for b in range(10)]
        pq.write_table(pa.Table.from_pylist(problems), inside / "dialogues.parquet")
        pq.write_table(pa.Table.from_pylist(documents), inside / "documents.parquet")
    config = TokenizeConfig(vocab_size=320, workers=1)
    scratch = folder / "scratch"
    scratch.mkdir()
    tokenize(config, corpus=made.product("corpus"), out=made.product("shards"), scratch=scratch, emit=lambda _: None)
    for seed, name in enumerate(("chat", "aligned")):
        make_model(made, name, seed)
    return made


def make_model(space: Workspace, name: str, seed: int) -> None:
    tokenizer = Shards.open(space.product("shards")).tokenizer
    torch.manual_seed(seed)
    shape = ModelConfig.preset("tiny", vocab_size=tokenizer.vocab_size, width=32)
    with artifacts.new_product(space.product(name), name) as inside:
        save_model(Transformer(shape), inside, tokenizer)


def write_product(space: Workspace, shares: dict[str, float], evaluation_set: str, **figures: float) -> None:
    """Scores as the stage evaluate writes them: each model answers this share of the problems rightly."""
    config: Any = space.config("evaluate")
    asked = held_out_problems(space.product("corpus"), config.problems)
    rows = []
    for model, share in shares.items():
        for place, problem in enumerate(asked):
            right = float(place < share * len(asked))
            common = {"model": model, "task": "problems", "prompt_id": problem.id, "prompt": problem.question}
            rows.append(Row(**common, mode="greedy", answer="9", score=right))
            rows += [Row(**common, mode="sampled", answer="9", score=right, sample=s, tokens=2) for s in range(2)]
    if evaluation_set != "first":
        row = stage("evaluate")
        prompts = harmful_prompts(
            space.root / row.files["sets"], space.root / row.files["heldout"], config.safety_prompts
        )
        rows += [Row("aligned", HARMFUL, "greedy", key, text, "I cannot.", 1.0) for key, text in prompts]
    told = {"bits_per_byte": 2.0, "mean_length": 2.0, "ended": 1.0, "kl_from_chat": 0.5} | figures
    pages = held_out_pages(Shards.open(space.product("shards")), config.validation_tokens).digest
    summary = {"evaluation_set": evaluation_set, "pages": pages, "models": dict.fromkeys(shares, told)}
    with artifacts.new_product(space.product("scores"), "scores") as inside:
        write_rows(inside / "rows.parquet", rows)
        (inside / "summary.json").write_bytes(artifacts.dump_json(summary))


@pytest.fixture(scope="module")
def judge(space: Workspace) -> Callable[[], dict[str, Any]]:
    def ask() -> dict[str, Any]:
        judge_now(space, uri(space))
        return json.loads(space.report("promote").read_text())

    return ask


def uri(space: Workspace) -> str:
    return f"sqlite:///{space.root}/mlflow.db"


@pytest.fixture(scope="module", autouse=True)
def _artifacts_stay_here(space: Workspace) -> None:
    from tasks import tracking

    client = tracking.client(uri(space))
    client.create_experiment("groundup/promote", artifact_location=(space.root / "artifacts").as_uri())


def aliases(space: Workspace) -> dict[str, tuple[str, str]]:
    registered = registry.Registry(uri(space))
    found = {alias: registered.get(alias) for alias in ("candidate", "champion", "previous")}
    return {alias: (version.number, version.model) for alias, version in found.items() if version}


def test_chat_is_the_first_champion_and_aligned_beats_it(space: Workspace, judge: Any, tmp_path: Path) -> None:
    write_product(space, {"chat": 0.5, "aligned": 0.9}, "first")
    report = judge()
    assert report["verdicts"]["chat"]["promoted"]
    assert report["verdicts"]["aligned"]["promoted"], report["reason"]
    assert not report["champion_scored_again"]
    assert aliases(space) == {"champion": ("2", "aligned"), "candidate": ("2", "aligned"), "previous": ("1", "chat")}
    folder = registry.Registry(uri(space)).model_folder("champion", tmp_path)
    assert (folder / "README.md").read_text() == (space.root / "reports" / "model_card.md").read_text()
    assert "Aligned is promoted" in (folder / "README.md").read_text()
    assert (folder / "DATA.md").read_text() == (space.root / "reports" / "data_card.md").read_text()


def test_the_history_stands_in_mlflow(space: Workspace) -> None:
    from tasks import tracking

    client = tracking.client(uri(space))
    runs = client.search_runs([tracking.experiment_id(client, "promote")])
    assert runs[0].data.tags["promoted"] == "chat, aligned"
    assert runs[0].data.metrics["aligned/win_rate"] > 0.5
    assert runs[0].data.params["gate.require"] == "better"


def test_the_same_model_is_not_judged_against_itself(space: Workspace, judge: Any) -> None:
    assert judge()["reason"] == "aligned is the champion already"


def test_a_refused_model_is_a_candidate_and_the_champion_stays(space: Workspace, judge: Any) -> None:
    make_model(space, "aligned", seed=7)
    write_product(space, {"chat": 0.5, "aligned": 0.6}, "first")
    report = judge()
    assert not report["verdicts"]["aligned"]["promoted"]
    assert aliases(space) == {"champion": ("2", "aligned"), "candidate": ("3", "aligned"), "previous": ("1", "chat")}
    assert "Version" not in report["champion"]


def test_a_champion_that_was_asked_other_things_is_scored_again(space: Workspace, judge: Any) -> None:
    """In a child process, by its own weights: random ones, which solve nothing."""
    make_model(space, "aligned", seed=8)
    write_product(space, {"chat": 0.5, "aligned": 0.6}, "second")
    report = judge()
    assert report["champion_scored_again"]
    assert report["verdicts"]["aligned"]["promoted"], report["reason"]
    assert aliases(space)["champion"] == ("4", "aligned")
    assert aliases(space)["previous"] == ("2", "aligned")
    safety = [check for check in report["verdicts"]["aligned"]["checks"] if check["name"] == f"{HARMFUL}_difference"]
    assert safety[0]["value"] > 0.5, "random weights decline nothing"
    again = next((space.root / ".groundup" / "rescored").iterdir())
    summary = json.loads((again / "summary.json").read_text())
    assert summary["evaluation_set"] == "second"
    assert summary["models"]["champion"]["bits_per_byte"] != 2.0


def test_a_champion_that_cannot_be_scored_again_stays(space: Workspace, judge: Any) -> None:
    make_model(space, "aligned", seed=9)
    write_product(space, {"chat": 0.5, "aligned": 0.99}, "third")
    corpus = space.product("corpus")
    corpus.rename(corpus.with_name("away"))
    try:
        report = judge()
    finally:
        corpus.with_name("away").rename(corpus)
    assert not report["verdicts"]["aligned"]["promoted"]
    assert "has to be scored again" in report["reason"]
    assert "could not be scored again" in report["reason"]
    assert aliases(space)["champion"] == ("4", "aligned")


def test_a_missing_figure_refuses(space: Workspace, judge: Any) -> None:
    write_product(space, {"chat": 0.5, "aligned": 0.99}, "second", kl_from_chat=float("nan"))
    report = judge()
    assert "was not measured" in report["reason"]
    assert aliases(space)["champion"] == ("4", "aligned")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("product", "file"),
    [("aligned", "model.safetensors"), ("aligned", "config.json"), ("chat", "model.safetensors"),
     ("scores", "rows.parquet"), ("scores", "summary.json")],
)  # fmt: skip
def test_what_changed_by_itself_is_never_promoted(space: Workspace, judge: Any, product: str, file: str) -> None:
    make_model(space, "aligned", seed=10)
    write_product(space, {"chat": 0.5, "aligned": 0.99}, "second")
    before = aliases(space)
    victim = space.product(product) / file
    good = victim.read_bytes()
    flip(victim)
    try:
        with pytest.raises(BadInput) as caught:
            judge()
    finally:
        victim.write_bytes(good)
    assert str(victim) in str(caught.value)
    assert "--force" in str(caught.value)
    assert aliases(space) == before


def test_scores_of_another_model_promote_nobody(space: Workspace, judge: Any) -> None:
    """aligned was made again since it was measured, and nobody measured the new one."""
    before = aliases(space)
    measured = {name: artifacts.digest(space.product(name)) for name in ("chat", "aligned")}
    digest = artifacts.digest(space.product("scores"))
    space.report("evaluate").write_bytes(artifacts.dump_json({"inputs": measured, "product": digest}))
    try:
        make_model(space, "aligned", seed=11)
        with pytest.raises(BadInput, match="the scores are of another aligned"):
            judge()
    finally:
        space.report("evaluate").unlink()
    assert aliases(space) == before


def test_a_champion_that_changed_in_the_store_is_not_handed_out(space: Workspace, tmp_path: Path) -> None:
    registered = registry.Registry(uri(space))
    champion = registered.get("champion")
    assert champion is not None
    folder = registered.model_folder("champion", tmp_path)
    flip(folder / "model.safetensors")
    weights = registered.model_folder("champion", tmp_path) / "model.safetensors"
    listed = artifacts.read_manifest(folder)["files"]["model.safetensors"]
    assert artifacts.sha256(weights) == listed["sha256"], "the copy that decayed was downloaded again"
    stored = next(space.root.glob(f"artifacts/{champion.run_id}/artifacts/models/*/model.safetensors"))
    flip(stored)
    try:
        with pytest.raises(BadInput, match=r"model.safetensors: its bytes differ from those that were registered"):
            registered.model_folder("champion", tmp_path / "elsewhere")
    finally:
        flip(stored)


def test_rollback_is_one_step_and_is_remembered(space: Workspace) -> None:
    from tasks import tracking

    now, before = registry.Registry(uri(space)).rollback()
    assert (now.number, before.number) == ("2", "4")
    assert aliases(space)["champion"] == ("2", "aligned")
    assert aliases(space)["previous"] == ("4", "aligned")
    client = tracking.client(uri(space))
    run = client.search_runs([tracking.experiment_id(client, "promote")])[0]
    assert run.data.tags["event"] == "rollback"
    assert run.data.tags["champion"] == "version 2 (aligned)"
