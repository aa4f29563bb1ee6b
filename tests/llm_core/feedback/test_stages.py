"""collect and reward on a small world: whose votes count, equal bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from llm_core.artifacts import digest, new_product, verify
from llm_core.contract import BadInput, Event, Report
from llm_core.data.bpe import Tokenizer
from llm_core.data.dialogue import encode
from llm_core.data.sources.problems import is_right
from llm_core.feedback import collect, reward
from llm_core.feedback.preferences import (
    Vote,
    clear_pairs,
    collate,
    encode_pairs,
    epochs,
    read_votes,
    split_of,
    write_votes,
)
from llm_core.feedback.scorer import load_reward_model
from llm_core.model.checkpoint import load_model
from llm_core.settings.collect import CollectConfig
from llm_core.settings.reward import RewardConfig

COLLECT = {"threads": 1, "samples": 6, "pairs": 8, "max_new_tokens": 6, "validation_share": 0.3, "rater_noise": 0.0}
REWARD = {"threads": 1, "steps": 12, "batch_pairs": 8, "evaluate_every": 4}


def quiet(event: Event) -> None:
    """A listener that hears nothing."""


def fresh(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def collected(world: Any, folder: Path, votes_file: Path, corpus: Path | None = None, **settings: Any) -> Report:
    return collect.run(
        CollectConfig.model_validate(COLLECT | settings), chat=world.chat, corpus=corpus or world.corpus,
        votes_file=votes_file, out=folder / "votes", scratch=fresh(folder / "scratch"), emit=quiet,
    )  # fmt: skip


@pytest.fixture(scope="module")
def simulated(small_world: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    folder = tmp_path_factory.mktemp("simulated")
    (folder / "votes.jsonl").touch()
    return folder / "votes", collected(small_world, folder, folder / "votes.jsonl")


def person(number: int, **changes: Any) -> str:
    prompt = [{"role": "user", "content": f"{number} + 1 = ?"}]
    vote = {"id": f"t{number}", "prompt": prompt, "answer_a": str(number + 1), "answer_b": "0", "preference": "a"}
    return json.dumps({**vote, "rater": "r1", **changes}) + "\n"


def test_the_simulated_rater_votes_until_there_are_enough_people(simulated: tuple[Path, Report]) -> None:
    folder, report = simulated
    verify(folder)
    votes = read_votes(folder)
    assert {vote.rater for vote in votes} == {"simulated"}
    assert report.metrics["votes"] == len(votes) > 50
    assert 0.05 < report.metrics["sampled_right"] < 0.95
    assert report.metrics["rater_agrees_with_check"] == 1.0
    for vote in votes:
        right = [is_right(answer, vote.check or "") for answer in (vote.answer_a, vote.answer_b)]
        assert vote.preference == {(1, 0): "a", (0, 1): "b", (1, 1): "tie", (0, 0): "both_bad"}[tuple(map(int, right))]  # type: ignore[index]
        assert vote.answer_a != vote.answer_b
    by_prompt: dict[str, set[str]] = {}
    for vote in votes:
        by_prompt.setdefault(vote.prompt[-1]["content"], set()).add(vote.split)
    assert all(len(splits) == 1 for splits in by_prompt.values())
    assert {vote.split for vote in votes} == {"train", "validation"}


def test_only_feedback_problems_are_asked(simulated: tuple[Path, Report], small_world: Any) -> None:
    rows = pq.read_table(small_world.corpus / "dialogues.parquet").to_pylist()
    allowed = {row["messages"][0]["content"] for row in rows if row["split"] == "feedback"}
    assert {vote.prompt[-1]["content"] for vote in read_votes(simulated[0])} <= allowed


def test_the_same_inputs_give_the_same_bytes(simulated: tuple[Path, Report], small_world: Any, tmp_path: Path) -> None:
    (tmp_path / "votes.jsonl").touch()
    collected(small_world, tmp_path, tmp_path / "votes.jsonl")
    assert digest(tmp_path / "votes") == digest(simulated[0])


def test_people_count_alone_once_there_are_enough(small_world: Any, tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(person(i) for i in range(9)) + person(9, preference="tie") + person(3, rater="r2"))
    report = collected(small_world, tmp_path, path, min_votes=10)
    votes = read_votes(tmp_path / "votes")
    assert {vote.rater for vote in votes} == {"person"}
    assert (report.metrics["votes"], report.metrics["clear_votes"]) == (11, 10)
    assert (report.metrics["people_agreement"], report.metrics["people_agreement_pairs"]) == (1.0, 1)
    shutil.rmtree(tmp_path / "scratch")
    collected(small_world, tmp_path, path, min_votes=11)
    assert {vote.rater for vote in read_votes(tmp_path / "votes")} == {"simulated"}


def test_what_people_do_wrong_is_left_out_named_and_counted(small_world: Any, tmp_path: Path) -> None:
    path, notes = tmp_path / "votes.jsonl", []
    lines = [person(i, preference="ab"[i % 2], seconds=3.0) for i in range(12)]
    lines += [person(20 + i, rater="always-left", seconds=3.0) for i in range(5)]
    lines += [person(30, seconds=0.2), person(31, answer_b=""), person(32, answer_b="33")]
    lines += [person(33, prompt=[{"role": "user", "content": "why? " * 200}])]
    lines += [person(34), person(34, id="again", rater="r2", answer_a="0", answer_b="35")]  # the other answer
    path.write_text("".join(lines))
    config = CollectConfig.model_validate(COLLECT | {"min_votes": 12, "one_sided_votes": 5})
    report = collect.run(
        config, chat=small_world.chat, corpus=small_world.corpus, votes_file=path, out=tmp_path / "votes",
        scratch=fresh(tmp_path / "s"), emit=lambda event: notes.append(getattr(event, "text", "")),
    )  # fmt: skip
    found = {name.removeprefix("people_"): value for name, value in report.metrics.items() if "people_" in name}
    assert {name: found[name] for name in ("votes", "clear_votes")} == {"votes": 23, "clear_votes": 12}
    reasons = ("too_fast", "empty_answer", "identical_answers", "prompt_too_long", "one_sided_rater", "contradicted")
    assert [found[reason] for reason in reasons] == [1, 1, 1, 1, 5, 2]
    assert {vote.rater for vote in read_votes(tmp_path / "votes")} == {"person"}
    rows = {str(row["rater"]): row for row in report.tables["raters"]}
    assert (rows["always-left"]["left"], rows["always-left"]["used"]) == (1.0, "no: one side only")
    collected(small_world, tmp_path / "more", path, min_votes=13, one_sided_votes=5)
    assert {vote.rater for vote in read_votes(tmp_path / "more" / "votes")} == {"simulated"}


def test_too_few_votes_say_how_many_and_why(small_world: Any, tmp_path: Path) -> None:
    path, notes = tmp_path / "votes.jsonl", []
    path.write_text("".join(person(i, rater="hasty", seconds=0.1) for i in range(3)) + person(9))
    report = collect.run(
        CollectConfig.model_validate(COLLECT), chat=small_world.chat, corpus=small_world.corpus, votes_file=path,
        out=tmp_path / "votes", scratch=fresh(tmp_path / "s"),
        emit=lambda event: notes.append(getattr(event, "text", "")),
    )  # fmt: skip
    assert "1 usable clear votes by people (left out: 3 too fast), 200 are needed: the simulated rater votes" in notes
    assert report.metrics["people_votes_missing"] == 199


def test_an_edited_answer_beats_the_one_it_was_made_of(small_world: Any, tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_text(
        person(1, edited="2, as one and one make two")
        + person(2, preference="both_bad", answer_a="5", edited="3", edited_of="b")
        + person(3, preference="tie")
    )
    report = collected(small_world, tmp_path, path, min_votes=1)
    assert report.metrics["people_edits"] == 2
    pairs = clear_pairs(read_votes(tmp_path / "votes"), "votes", "train")
    pairs += clear_pairs(read_votes(tmp_path / "votes"), "votes", "validation")
    found = {(pair.chosen, pair.rejected) for pair in pairs}
    assert found == {("2", "0"), ("2, as one and one make two", "2"), ("3", "0")}


def test_preference_data_lie_beside_and_are_not_taken_unasked(small_world: Any, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(small_world.corpus, corpus)
    prompt = [{"role": "user", "content": "Hello?"}]
    rows = [
        {"id": f"p{i}", "source": "s", "group": f"g{i}", "split": "train", "prompt": prompt, "chosen": f"Yes {i}",
         "rejected": "No" if i else "Yes 0"}
        for i in range(21)
    ]  # fmt: skip
    rows += [{**rows[1], "id": "x", "chosen": c, "rejected": r} for c, r in (("Up", "Down"), ("Down", "Up"))]
    pq.write_table(pa.Table.from_pylist(rows), corpus / "preferences.parquet")
    (tmp_path / "votes.jsonl").touch()
    report = collected(small_world, tmp_path, tmp_path / "votes.jsonl", corpus)
    votes = read_votes(tmp_path / "votes")
    offline = [vote for vote in votes if vote.rater == "dataset"]
    assert len(offline) == 20
    assert report.metrics["dataset_pairs_refused"] == 3
    assert (report.metrics["dataset_identical_answers"], report.metrics["dataset_contradicted"]) == (1, 2)
    assert {vote.source for vote in offline} == {"s"}
    assert {vote.preference for vote in offline} == {"a", "b"}
    assert all(pair.chosen.startswith("Yes") for pair in clear_pairs(votes, "dataset", "train"))
    assert not any(pair.chosen.startswith("Yes") for pair in clear_pairs(votes, "votes", "train"))
    both = sum(len(clear_pairs(votes, pool, "train")) for pool in ("votes", "dataset"))  # type: ignore[arg-type]
    assert len(clear_pairs(votes, "both", "train")) == both


def test_nothing_to_collect_is_said_in_a_sentence(small_world: Any, tmp_path: Path) -> None:
    with new_product(tmp_path / "corpus", "corpus") as folder:
        rows = [row for row in pq.read_table(small_world.corpus / "dialogues.parquet").to_pylist() if not row["check"]]
        pq.write_table(pa.Table.from_pylist(rows), folder / "dialogues.parquet")
    (tmp_path / "votes.jsonl").write_text(person(1))
    with pytest.raises(BadInput, match=r"votes\.jsonl: 1 votes, fewer than collect\.min_votes = 200"):
        collected(small_world, tmp_path, tmp_path / "votes.jsonl", tmp_path / "corpus")


def rewarded(small_world: Any, votes: Path, folder: Path, **settings: Any) -> Report:
    config = RewardConfig.model_validate(REWARD | settings)
    return reward.run(
        config, chat=small_world.chat, votes=votes, out=folder / "reward", scratch=fresh(folder / "s"), emit=quiet
    )


def test_the_reward_model_is_normalised_and_judged_beside_baselines(
    small_world: Any, simulated: tuple[Path, Report], tmp_path: Path
) -> None:
    report = rewarded(small_world, simulated[0], tmp_path)
    for rival in ("length", "words", "likelihood"):
        assert {f"{rival}_accuracy", f"gain_over_{rival}", f"gain_over_{rival}_low"} <= report.metrics.keys()
    accuracy = report.metrics["accuracy"]
    assert report.metrics["gain_over_words"] == pytest.approx(accuracy - report.metrics["words_accuracy"], abs=1e-6)
    assert 0 <= report.metrics["calibration_error"] <= 0.5
    for name in ("accuracy by margin", "accuracy by length", "reliability"):
        assert sum(row["pairs"] for row in report.tables[name]) == report.metrics["held_out_pairs"]
    model, tokenizer = load_reward_model(tmp_path / "reward"), Tokenizer.load(tmp_path / "reward")
    config = RewardConfig.model_validate(REWARD)
    sequences = reward._answers(read_votes(simulated[0]), load_model(small_world.chat), tokenizer, config)
    scores = torch.tensor(model.score(sequences))
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(scores.std(correction=0)) == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(BadInput, match=r"head\.safetensors"):
        load_reward_model(small_world.chat)


def test_two_heads_learn_opposite_tastes_from_their_own_sources(small_world: Any, tmp_path: Path) -> None:
    """One source prefers short answers, the other long ones: each head has to learn its own."""
    votes = []
    for number in range(160):
        source = "brief" if number % 2 else "chatty"
        short, long = f"{number % 10}", f"the larger of the two numbers is {number % 10}"
        chosen, rejected = (short, long) if source == "brief" else (long, short)
        prompt = [{"role": "user", "content": f"max({number % 7}, {number % 10}) = ?"}]
        split: Any = "validation" if number % 5 == 0 else "train"
        votes.append(Vote(f"v{number}", prompt, chosen, rejected, "a", "dataset", None, f"g{number}", split, source))
    fresh(tmp_path / "votes")
    write_votes(tmp_path / "votes" / "pairs.parquet", votes)
    heads = {"short": {"sources": ["brief"], "weight": 1}, "long": {"sources": ["chatty"], "weight": 0}}
    settings = {"pool": "dataset", "heads": heads, "steps": 30, "learning_rate": 3e-3, "likelihood": False}
    report = rewarded(small_world, tmp_path / "votes", tmp_path, **settings)
    assert report.metrics["short_accuracy"] == report.metrics["long_accuracy"] == 1.0
    model, tokenizer = load_reward_model(tmp_path / "reward"), Tokenizer.load(tmp_path / "reward")
    answers = ["3", "the larger of the two numbers is 3"]
    talks = [[*votes[0].prompt, {"role": "assistant", "content": answer}] for answer in answers]
    sequences = [encode(talk, tokenizer)[0] for talk in talks]
    scores = model.score(sequences)
    assert scores[0] > scores[1]
    model.mix({"long": 1.0})
    scores = model.score(sequences)
    assert scores[0] < scores[1]
    with pytest.raises(BadInput, match=r"no pair of source 'rude', only of brief, chatty"):
        rewarded(small_world, tmp_path / "votes", tmp_path / "b", pool="dataset", heads={"h": {"sources": ["rude"]}})


def test_too_few_clear_votes_leave_the_reward_untrained(
    small_world: Any, simulated: tuple[Path, Report], tmp_path: Path
) -> None:
    report = reward.run(
        RewardConfig.model_validate(REWARD | {"batch_pairs": 5000}), chat=small_world.chat, votes=simulated[0],
        out=tmp_path / "reward", scratch=fresh(tmp_path / "s"), emit=quiet,
    )  # fmt: skip
    assert report.metrics["steps"] == 0
    assert "accuracy" not in report.metrics
    assert "Untrained" in (tmp_path / "reward" / "README.md").read_text()


def test_batches(simulated: tuple[Path, Report], small_world: Any) -> None:
    tokenizer = Tokenizer.load(small_world.chat)
    pairs = clear_pairs(read_votes(simulated[0]), "votes", "train")
    encoded = encode_pairs(pairs, tokenizer, 96)
    assert len(encoded) == len(pairs)
    assert encode_pairs(pairs, tokenizer, 5) == []
    batch = collate(encoded, [3, 0])
    for row, (pair, text) in enumerate([(3, "chosen"), (0, "chosen"), (3, "rejected"), (0, "rejected")]):
        answer = batch.tokens_BT[row][batch.mask_BT[row].bool()].tolist()
        end = int(batch.last_B[row])
        assert tokenizer.decode(answer[:-1]) == getattr(pairs[pair], text)
        assert answer[-1] == tokenizer.specials["<|end|>"] == int(batch.tokens_BT[row, end])
        assert not batch.mask_BT[row, end + 1 :].any()
    rows = epochs(10, 4, seed=1)
    first = [row for step in range(5) for row in rows(step)]
    assert sorted(first[:10]) == sorted(first[10:]) == list(range(10))
    assert first[:10] != first[10:]
    assert rows(3) == epochs(10, 4, seed=1)(3)


def test_splits_are_a_pure_function_of_the_group() -> None:
    shares = [split_of(f"group {i}", 0.2) == "validation" for i in range(2000)]
    assert 0.17 < sum(shares) / 2000 < 0.23
