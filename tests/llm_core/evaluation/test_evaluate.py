"""The stage evaluate on a small world, and its figures against plain re-computation."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from llm_core.artifacts import digest, new_product, verify
from llm_core.contract import Event, Progress, Report
from llm_core.data.bpe import Tokenizer
from llm_core.data.dialogue import encode_prompt
from llm_core.data.shards import Shards
from llm_core.data.sources.problems import is_right
from llm_core.evaluation import evaluate, problems, questions
from llm_core.evaluation.benchmarks import local
from llm_core.evaluation.benchmarks.docstrings import Choice, Cloze
from llm_core.evaluation.perplexity import held_out_pages, page_bits_per_byte
from llm_core.feedback.scorer import RewardModel, save_reward_model
from llm_core.model.checkpoint import load_model, save_model
from llm_core.release.gate import decide
from llm_core.release.scores import read_scores
from llm_core.settings.evaluate import EvaluateConfig

SETS = Path(local.__file__).with_name("sets")
SETTINGS = {
    "threads": 1, "answers": 2, "base_problems": 5, "max_new_tokens": 6, "bootstrap": 200, "sample_tokens": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def products(small_world: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Chat, an `aligned` that differs from it a little, and an untrained reward model."""
    root = tmp_path_factory.mktemp("products")
    tokenizer, model = Tokenizer.load(small_world.chat), load_model(small_world.chat)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    with new_product(root / "aligned", "aligned") as folder:
        save_model(model, folder, tokenizer, "aligned")
    with new_product(root / "reward", "reward") as folder:
        save_reward_model(RewardModel(load_model(small_world.chat)), folder, tokenizer, "reward")
    found = {name: getattr(small_world, name) for name in ("base", "chat", "shards", "corpus")}
    return found | {"aligned": root / "aligned", "reward": root / "reward"}


def evaluated(products: dict[str, Path], folder: Path, heard: list[Event] | None = None, **settings: Any) -> Report:
    (folder / "scratch").mkdir()
    (heldout := folder / "heldout").mkdir()
    return evaluate.run(
        EvaluateConfig.model_validate(SETTINGS | settings), **products, heldout=heldout, sets=SETS,
        out=folder / "scores", scratch=folder / "scratch", emit=(heard if heard is not None else []).append,
    )  # fmt: skip


@pytest.fixture(scope="module")
def scores(products: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    folder = tmp_path_factory.mktemp("scores")
    return folder / "scores", evaluated(products, folder)


def test_rows_hold_every_judged_answer(scores: tuple[Path, Report], products: dict[str, Path]) -> None:
    verify(scores[0])
    rows = pq.read_table(scores[0] / "rows.parquet").to_pylist()
    asked = {p.id: p for p in problems.held_out_problems(products["corpus"], 1000)}
    own = [row for row in rows if row["task"] == "problems" and not row["baseline"]]
    for model, mode, count in (("base", "greedy", 5), ("chat", "greedy", 20), ("aligned", "sampled", 40)):
        assert sum((row["model"], row["mode"]) == (model, mode) for row in own) == count
    for row in own:
        assert row["score"] == float(is_right(row["answer"], asked[row["prompt_id"]].check))
    sampled = [row for row in own if row["mode"] == "sampled"]
    assert all(math.isfinite(row["reward"]) for row in sampled)


def test_the_summary_repeats_what_the_rows_say(scores: tuple[Path, Report]) -> None:
    rows = pq.read_table(scores[0] / "rows.parquet").to_pylist()
    summary = json.loads((scores[0] / "summary.json").read_text())
    for name, mode in (("greedy_accuracy", "greedy"), ("sampled_accuracy", "sampled")):
        for model in ("chat", "aligned"):
            mine = [
                row["score"] for row in rows
                if (row["model"], row["task"], row["mode"], row["baseline"]) == (model, "problems", mode, "")
            ]  # fmt: skip
            figure = summary["models"][model]["intervals"][name]
            assert figure["value"] == pytest.approx(np.mean(mine), abs=1e-6)
            assert figure["low"] <= figure["value"] <= figure["high"]
            assert figure["n"] == 20
    gain = summary["differences"]["aligned-chat"]["sampled_accuracy"]
    models = summary["models"]
    expected = models["aligned"]["sampled_accuracy"] - models["chat"]["sampled_accuracy"]
    assert gain["value"] == pytest.approx(expected, abs=1e-6)
    assert math.isfinite(models["aligned"]["kl_from_chat"])  # an estimate: with few answers it may fall below 0
    assert "kl_from_chat" not in models["chat"]
    assert set(summary["baselines"]["greedy_accuracy"]) == {
        "constant", "copied_question", "copied_word", "shuffled aligned", "shuffled chat",
    }  # fmt: skip


def test_the_gate_reads_the_scores(scores: tuple[Path, Report]) -> None:
    chat, aligned = read_scores(scores[0], "chat"), read_scores(scores[0], "aligned")
    assert len(chat.sampled) == len(chat.greedy) == 20
    assert {check.name for check in decide(aligned, chat).checks} >= {"win_rate", "bits_per_byte_ratio"}
    assert not decide(chat, chat).promoted


def test_the_same_inputs_give_the_same_bytes(
    scores: tuple[Path, Report], products: dict[str, Path], tmp_path: Path
) -> None:
    heard: list[Event] = []
    evaluated(products, tmp_path, heard)
    assert digest(tmp_path / "scores") == digest(scores[0])
    progress = [event for event in heard if isinstance(event, Progress)]
    assert [event.done for event in progress] == sorted(event.done for event in progress)


def test_other_questions_have_another_digest(
    scores: tuple[Path, Report], products: dict[str, Path], tmp_path: Path
) -> None:
    evaluated(products, tmp_path, temperature=0.7)
    other, same = read_scores(tmp_path / "scores", "chat"), read_scores(scores[0], "chat")
    assert other.evaluation_set != same.evaluation_set
    assert other.pages == same.pages
    assert "scored again" in decide(other, same).reason


def test_samples_are_the_same_prompts_for_every_model(scores: tuple[Path, Report]) -> None:
    prompts: dict[str, list[str]] = {}
    for sample in scores[1].samples:
        prompts.setdefault(sample["model"], []).append(sample["prompt"])
    assert set(prompts) == {"base", "chat", "aligned"}
    assert len(prompts["chat"]) == 6
    assert prompts["base"] == prompts["chat"] == prompts["aligned"]


def test_a_corpus_without_problems_is_measured_and_then_refused(products: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(products["corpus"], tmp_path / "corpus")
    table = pq.read_table(tmp_path / "corpus" / "dialogues.parquet")
    kept = [row for row in table.to_pylist() if row["kind"] != "problem"]
    pq.write_table(table.from_pylist(kept, schema=table.schema), tmp_path / "corpus" / "dialogues.parquet")
    evaluated(products | {"corpus": tmp_path / "corpus"}, tmp_path)
    scores = read_scores(tmp_path / "scores", "aligned")
    assert scores.bits_per_byte is not None
    assert not decide(scores, read_scores(tmp_path / "scores", "chat")).promoted
    assert not decide(read_scores(tmp_path / "scores", "chat"), None).promoted


def test_bits_per_byte_equals_a_plain_computation(small_world: Any) -> None:
    """All pages fit the context, so each is one forward pass: nats of its tokens over the bytes of its text."""
    shards, model = Shards.open(small_world.shards), load_model(small_world.chat)
    pages = held_out_pages(shards, 10**6)
    nats, size = 0.0, 0
    for page in pages.tokens["small"]:
        assert len(page) < model.config.context
        tokens = torch.tensor([[shards.tokenizer.end_id, *page.tolist()]])
        with torch.no_grad():
            logprobs = model(tokens[:, :-1]).log_softmax(-1)
        nats -= float(logprobs.gather(2, tokens[:, 1:, None]).sum())
        size += len(shards.tokenizer.decode(page.tolist()[:-1]).encode())
    figures = page_bits_per_byte(model, pages)
    assert figures["small"] == figures["all"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert size == shards.text_bytes("validation")


def test_a_choice_is_scored_by_gain_in_likelihood_per_token(small_world: Any) -> None:
    model, tokenizer = load_model(small_world.chat), Tokenizer.load(small_world.chat)

    def logprob(prompt: list[int], answer: list[int]) -> float:
        logits = model(torch.tensor([[*prompt, *answer]])).log_softmax(-1)[0, len(prompt) - 1 : -1]
        return float(logits.gather(1, torch.tensor(answer)[:, None]).sum())

    item = Choice("i", "What does the function path do?", ("Return it.", "7", "Return the path of it.", "No"), 2)
    gains = []
    with torch.no_grad():
        for choice in item.choices:
            asked, empty = ([{"role": "user", "content": text}] for text in (item.question, ""))
            answer = tokenizer.encode(choice)
            pair = [logprob(encode_prompt(turns, tokenizer), answer) for turns in (asked, empty)]
            gains.append((pair[0] - pair[1]) / len(answer))
    row = questions.choose("chat", model, tokenizer, [item], plain=False)[0]
    assert row.answer == item.choices[gains.index(max(gains))]
    assert row.score == float(gains.index(max(gains)) == 2)


def test_trivial_methods() -> None:
    item = Choice("i", "What does copy do?", ("Copy a file, do it.", "Return the longest name of all.", "No", "Yes"), 0)
    found = {row.baseline: row.score for row in questions.choice_baselines([item])}
    assert found == {"longest": 0.0, "copied_question": 1.0}
    items = [Cloze("1", "list of all the list", "list"), Cloze("2", "some file", "list"), Cloze("3", "a b", "name")]
    scores = [(row.baseline, row.score) for row in questions.cloze_baselines(items)]
    assert [score for name, score in scores if name == "constant"] == [1.0, 1.0, 0.0]
    assert [score for name, score in scores if name == "frequent_in_context"] == [1.0, 0.0, 0.0]


def test_trivial_answers_to_problems(small_world: Any) -> None:
    asked = problems.held_out_problems(small_world.corpus, 1000)
    rows = problems.baselines(asked)
    score = {
        name: sum(row.score for row in rows if row.baseline == name) / len(asked)
        for name in ("constant", "copied_question", "copied_word")
    }
    assert score["copied_question"] == 0.0
    assert 0 < score["constant"] <= 0.5 < score["copied_word"] < 1.0
    greedy = [problems.Row("chat", "problems", "greedy", p.id, p.question, p.check, 1.0) for p in asked]
    mixed = problems.shuffled(greedy, asked, seed=0)
    assert sorted(row.answer for row in mixed) == sorted(row.answer for row in greedy)
    assert [row.prompt_id for row in mixed] == [row.prompt_id for row in greedy]
