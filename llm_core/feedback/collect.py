"""Stage collect: pairs of answers with a preference.

People's votes are used alone once there are `min_votes` clear ones. Until then the chat model answers the corpus's
checked problems that were set aside for feedback, and the simulated rater votes. The corpus's own preference data lie
beside them. Every row names its kind of rater.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from llm_core.artifacts import new_product
from llm_core.contract import BadInput, Emit, Note, Progress, Report, Row
from llm_core.data import tables
from llm_core.data.bpe import Tokenizer
from llm_core.data.dialogue import encode_prompt
from llm_core.data.sources.problems import is_right
from llm_core.feedback.preferences import Messages, Vote, prompt_text, split_of, text_id, write_votes
from llm_core.feedback.quality import Limits, Sifted, agreement, bias, raters_table, sift, warnings
from llm_core.feedback.raters import CLEAR, PersonVote, Preference, clear, read_people, simulated_preference
from llm_core.feedback.rollout import Answer, answer
from llm_core.model.checkpoint import load_model
from llm_core.model.transformer import Transformer
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
    model, tokenizer = load_model(chat), Tokenizer.load(chat)
    context = model.config.context
    sifted = sift(
        people,
        Limits(config.min_seconds, config.one_sided_votes),
        lambda prompt: len(encode_prompt([message.model_dump() for message in prompt], tokenizer)) < context,
    )
    usable = clear([vote.preference for vote in sifted.kept])
    figures: dict[str, float] = {"people_votes": len(people), "people_clear_votes": usable}
    figures |= {f"people_{reason}": count for reason, count in sorted(sifted.refused.items())}
    figures |= _agreements(sifted.kept)
    tables: dict[str, Sequence[Row]] = {"raters": raters_table(people, sifted.one_sided)} if people else {}
    samples: list[dict[str, str]] = []
    if usable >= config.min_votes:
        votes = [made for vote in sifted.kept for made in _from_person(vote, config)]
        figures["people_edits"] = len(votes) - len(sifted.kept)
        tables["people"] = [{"trace": v.id, "rater": v.rater, "preference": v.preference} for v in sifted.kept]
    else:
        why = f"{usable} usable clear votes by people ({_left_out(sifted)}), {config.min_votes} are needed"
        emit(Note(f"{why}: the simulated rater votes"))
        figures["people_votes_missing"] = config.min_votes - usable
        votes, samples = _simulate(config, model, tokenizer, corpus, figures, emit)
    offline = _from_dataset(corpus, config, figures)
    if not votes and not offline:
        raise BadInput(
            f"{votes_file}: {len(people)} votes, fewer than collect.min_votes = {config.min_votes} usable clear ones, "
            "and the corpus has neither checked problems of split feedback nor preference data"
        )
    figures |= _counts([*votes, *offline])
    for sentence in warnings(figures | bias(_lengths(votes)), clear([vote.preference for vote in votes])):
        emit(Note(sentence))
    votes = [*votes, *offline]
    with new_product(out, "votes", {**figures, "raters": sorted({vote.rater for vote in votes})}) as folder:
        write_votes(folder / "pairs.parquet", votes)
    return Report(figures, {"votes": _table(votes)} | tables, samples)


def _left_out(sifted: Sifted) -> str:
    counted = [f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(sifted.refused.items())]
    named = f" by {', '.join(rater[:12] for rater in sifted.one_sided)}" if sifted.one_sided else ""
    return f"left out: {', '.join(counted)}{named}" if counted else "none left out"


def _agreements(people: list[PersonVote]) -> dict[str, float]:
    """Agreement of the raters, over all votes and over those that name a side, where any two can be compared."""
    figures: dict[str, float] = {}
    for name, clear_only in (("people_agreement", False), ("people_agreement_clear", True)):
        share, pairs = agreement(people, clear_only=clear_only)
        if pairs:
            figures[name], figures[f"{name}_pairs"] = share, pairs
    return figures


def _from_person(vote: PersonVote, config: CollectConfig) -> Iterable[Vote]:
    """The vote and, if the rater wrote a better answer, that one preferred to the one it was made of."""
    prompt = [{"role": message.role, "content": message.content} for message in vote.prompt]
    group = prompt_text(prompt)
    held = (text_id(group), split_of(group, config.validation_share), "people")
    key = f"{vote.id}:{vote.rater}"  # so that every model's lineage names the votes that made it
    yield Vote(key, prompt, vote.answer_a, vote.answer_b, vote.preference, "person", None, *held)
    side = vote.edited_of or ("b" if vote.preference == "b" else "a")
    original = vote.answer_b if side == "b" else vote.answer_a
    if vote.edited.strip() and vote.edited != original:
        sides = _sides(text_id(key, "edited"), vote.edited, original)
        yield Vote(f"{key}:edited", prompt, *sides, "person", None, *held)


def _sides(key: str, chosen: str, rejected: str) -> tuple[str, str, Preference]:
    """(answer a, answer b, preference): the side by a hash, so that neither is always right."""
    return (chosen, rejected, "a") if int(text_id(key, "side")[0], 16) < 8 else (rejected, chosen, "b")


def _simulate(
    config: CollectConfig,
    model: Transformer,
    tokenizer: Tokenizer,
    corpus: Path,
    figures: dict[str, float],
    emit: Emit,
) -> tuple[list[Vote], list[dict[str, str]]]:
    model.to(prepare(config.threads, config.device).device)
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
    rows = pq.read_table(tables.on_disk(corpus, "dialogues"), filters=[("split", "==", "feedback")]).to_pylist()
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


def _from_dataset(corpus: Path, config: CollectConfig, figures: dict[str, float]) -> list[Vote]:
    """The corpus's preference data; what cannot be used is counted in `figures` by its reason."""
    rows = [row for path in tables.on_disk(corpus, "preferences") for row in pq.read_table(path).to_pylist()]
    refused: Counter[str] = Counter()
    said = {(_asked(row), row["chosen"], row["rejected"]) for row in rows}
    votes = []
    for row in rows:
        chosen, rejected = row["chosen"], row["rejected"]
        if reason := _fault(chosen, rejected, (_asked(row), rejected, chosen) in said):
            refused[reason] += 1
            continue
        prompt = [dict(message) for message in row["prompt"]]
        sides = _sides(row["id"], chosen, rejected)
        split = split_of(row["group"], config.validation_share)
        votes.append(Vote(row["id"], prompt, *sides, "dataset", None, row["group"], split, row["source"]))
    figures["dataset_pairs_refused"] = refused.total()
    figures.update({f"dataset_{reason}": count for reason, count in sorted(refused.items())})
    return votes


def _asked(row: dict[str, Any]) -> str:
    return prompt_text([dict(message) for message in row["prompt"]])


def _fault(chosen: str, rejected: str, contradicted: bool) -> str | None:
    if not chosen.strip() or not rejected.strip():
        return "empty_answer"
    if chosen == rejected:
        return "identical_answers"
    return "contradicted" if contradicted else None


def _lengths(votes: list[Vote]) -> list[tuple[str, int, int]]:
    return [(vote.preference, len(vote.answer_a), len(vote.answer_b)) for vote in votes]


def _counts(votes: list[Vote]) -> dict[str, float]:
    figures: dict[str, float] = {"votes": len(votes), "clear_votes": clear([v.preference for v in votes])}
    figures["validation_votes"] = sum(vote.split == "validation" for vote in votes)
    figures |= bias(_lengths(votes))
    checked = [v for v in votes if v.rater == "simulated" and v.preference in CLEAR and v.check is not None]
    if checked:
        agreed = [is_right(v.answer_a if v.preference == "a" else v.answer_b, v.check or "") for v in checked]
        figures["rater_agrees_with_check"] = sum(agreed) / len(agreed)
    return figures


def _table(votes: list[Vote]) -> Sequence[Row]:
    counted = Counter((vote.rater, vote.split, vote.preference) for vote in votes)
    return [
        {"rater": rater, "split": split, "preference": preference, "votes": count}
        for (rater, split, preference), count in sorted(counted.items())
    ]
