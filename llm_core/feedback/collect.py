"""Stage collect: pairs of answers with a preference.

People's votes are used alone once there are `min_votes` clear ones. Until then the chat model answers the corpus's
checked problems that were set aside for feedback, and the simulated rater votes. The corpus's own preference data lie
beside them. Every row names its kind of rater.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from llm_core.artifacts import new_product
from llm_core.contract import BadInput, Emit, Note, Progress, Report
from llm_core.data.bpe import Tokenizer
from llm_core.data.dialogue import encode_prompt
from llm_core.data.sources.problems import is_right
from llm_core.feedback.preferences import Messages, Vote, prompt_text, split_of, text_id, write_votes
from llm_core.feedback.raters import CLEAR, PersonVote, agreement, clear, read_people, simulated_preference
from llm_core.feedback.rollout import Answer, answer
from llm_core.model.checkpoint import load_model
from llm_core.settings.collect import CollectConfig
from llm_core.train.machine import prepare


def run(
    config: CollectConfig,
    *,
    chat: Path,
    corpus: Path,
    votes_file: Path,
    out: Path,
    scratch: Path,  # noqa: ARG001  (sampling takes seconds: nothing to resume)
    emit: Emit,
) -> Report:
    """Write `pairs.parquet` and tell whose votes they are. Raises `BadInput` for an unusable votes file."""
    people = read_people(votes_file)
    enough = clear([vote.preference for vote in people]) >= config.min_votes
    figures: dict[str, float] = {"people_votes": len(people)}
    samples: list[dict[str, str]] = []
    if enough:
        votes = [_from_person(vote, config) for vote in people]
        figures["people_agreement"], figures["people_agreement_pairs"] = agreement(people)
    else:
        emit(
            Note(f"{len(people)} votes by people, {config.min_votes} clear ones are needed: the simulated rater votes")
        )
        votes, samples = _simulate(config, chat, corpus, figures, emit)
    offline, refused = _from_dataset(corpus, config)
    figures["dataset_pairs_refused"] = refused
    if not votes and not offline:
        raise BadInput(
            f"{votes_file}: {len(people)} votes, fewer than collect.min_votes = {config.min_votes} clear ones, and "
            "the corpus has neither checked problems of split feedback nor preference data"
        )
    votes = _usable([*votes, *offline], figures)
    figures |= _counts(votes)
    with new_product(out, "votes", {**figures, "raters": sorted({vote.rater for vote in votes})}) as folder:
        write_votes(folder / "pairs.parquet", votes)
    return Report(figures, {"votes": _table(votes)}, samples)


def _from_person(vote: PersonVote, config: CollectConfig) -> Vote:
    prompt = [{"role": message.role, "content": message.content} for message in vote.prompt]
    group = prompt_text(prompt)
    return Vote(
        text_id(vote.id, vote.rater), prompt, vote.answer_a, vote.answer_b, vote.preference, "person", None,
        text_id(group), split_of(group, config.validation_share), "people",
    )  # fmt: skip


def _simulate(
    config: CollectConfig, chat: Path, corpus: Path, figures: dict[str, float], emit: Emit
) -> tuple[list[Vote], list[dict[str, str]]]:
    prepare(config.threads, config.device)
    model, tokenizer = load_model(chat), Tokenizer.load(chat)
    problems = _problems(corpus)
    fitting = [p for p in problems if len(encode_prompt(_prompt(p), tokenizer)) < model.config.context]
    figures["prompts_too_long"] = len(problems) - len(fitting)
    chosen = fitting[: config.prompts]
    if not chosen:
        return [], []
    answers = answer(
        model,
        tokenizer,
        [_prompt(problem) for problem in chosen],
        samples=config.samples,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        told=lambda done: emit(Progress(done, len(chosen), "prompts", {"answers": done * config.samples})),
    )
    right = [[is_right(a.text, p["check"]) for a in drawn] for p, drawn in zip(chosen, answers, strict=True)]
    figures["prompts"] = len(chosen)
    figures["sampled_right"] = sum(map(sum, right)) / (len(chosen) * config.samples)
    votes = [vote for problem, drawn in zip(chosen, answers, strict=True) for vote in _vote(problem, drawn, config)]
    shown = [
        {"prompt": p["messages"][-2]["content"], "text": a[0].text} for p, a in zip(chosen[:8], answers, strict=False)
    ]
    return votes, shown


def _problems(corpus: Path) -> list[dict[str, Any]]:
    """Checked dialogues set aside for feedback, sorted by id."""
    rows = pq.read_table(corpus / "dialogues.parquet", filters=[("split", "==", "feedback")]).to_pylist()
    return sorted((row for row in rows if row["check"] is not None), key=lambda row: str(row["id"]))


def _prompt(problem: dict[str, Any]) -> Messages:
    """The dialogue without its last message, which is the answer."""
    return [dict(message) for message in problem["messages"][:-1]]


def _vote(problem: dict[str, Any], drawn: list[Answer], config: CollectConfig) -> Iterable[Vote]:
    """Votes on pairs of different answers to one prompt, drawn at random and shown in a random order."""
    draw = random.Random(f"pairs:{config.seed}:{problem['id']}")
    different = list(combinations(dict.fromkeys(a.text for a in drawn), 2))
    for number, pair in enumerate(draw.sample(different, min(config.pairs, len(different)))):
        name = f"{problem['id']}-{number}"
        a, b = pair if draw.random() < 0.5 else pair[::-1]
        right_a, right_b = (is_right(text, problem["check"]) for text in (a, b))
        preference = simulated_preference(right_a, right_b, noise=config.rater_noise, key=f"{config.seed}:{name}")
        split = split_of(problem["group"], config.validation_share)
        yield Vote(
            name,
            _prompt(problem),
            a,
            b,
            preference,
            "simulated",
            problem["check"],
            problem["group"],
            split,
            "simulated",
        )


def _from_dataset(corpus: Path, config: CollectConfig) -> tuple[list[Vote], int]:
    """The corpus's preference data, sides by a hash so that neither is always right; and how many rows are unusable."""
    path = corpus / "preferences.parquet"
    rows = pq.read_table(path).to_pylist() if path.is_file() else []
    votes = []
    for row in rows:
        chosen, rejected = row["chosen"], row["rejected"]
        if not chosen.strip() or not rejected.strip() or chosen == rejected:
            continue
        prompt = [dict(message) for message in row["prompt"]]
        first = int(text_id(row["id"], "side")[0], 16) < 8
        a, b = (chosen, rejected) if first else (rejected, chosen)
        split = split_of(row["group"], config.validation_share)
        votes.append(
            Vote(row["id"], prompt, a, b, "a" if first else "b", "dataset", None, row["group"], split, row["source"])
        )
    return votes, len(rows) - len(votes)


def _usable(votes: list[Vote], figures: dict[str, float]) -> list[Vote]:
    """Without votes that prefer one of two equal answers; people do that by mistake, and it teaches nothing."""
    kept = [v for v in votes if v.preference not in CLEAR or v.answer_a != v.answer_b]
    figures["identical_answers_refused"] = len(votes) - len(kept)
    return kept


def _counts(votes: list[Vote]) -> dict[str, float]:
    figures: dict[str, float] = {"votes": len(votes), "clear_votes": clear([v.preference for v in votes])}
    figures["validation_votes"] = sum(vote.split == "validation" for vote in votes)
    sided = [vote.preference == "a" for vote in votes if vote.preference in CLEAR]
    figures["side_a_share"] = sum(sided) / len(sided) if sided else 0.5
    checked = [v for v in votes if v.rater == "simulated" and v.preference in CLEAR and v.check is not None]
    if checked:
        agreed = [is_right(v.answer_a if v.preference == "a" else v.answer_b, v.check or "") for v in checked]
        figures["rater_agrees_with_check"] = sum(agreed) / len(agreed)
    return figures


def _table(votes: list[Vote]) -> list[dict[str, str | int]]:
    counted = Counter((vote.rater, vote.split, vote.preference) for vote in votes)
    return [
        {"rater": rater, "split": split, "preference": preference, "votes": count}
        for (rater, split, preference), count in sorted(counted.items())
    ]
