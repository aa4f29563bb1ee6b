"""Stage evaluate: what base, chat and aligned can do, each figure with its interval and its trivial baselines.

Rows by prompt are kept, so that a later model can be paired with these; `summary.json` holds the figures and the
digests of what was asked. What the gate needs is measured here; the harness's tasks and the safety checks run in a
child process each (jobs.py), and one that fails or hangs is reported while the rest goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm_core.artifacts import dump_json, new_product
from llm_core.contract import BadInput, Emit, Note, Progress, Report
from llm_core.data.bpe import Tokenizer
from llm_core.data.shards import Shards
from llm_core.evaluation import jobs, questions, summary
from llm_core.evaluation import problems as judged
from llm_core.evaluation.benchmarks import local
from llm_core.evaluation.benchmarks.docstrings import Benchmark, generate, write_sets
from llm_core.evaluation.perplexity import HeldOutPages, held_out_pages, page_bits_per_byte
from llm_core.evaluation.rows import Row, select, write_rows
from llm_core.evaluation.showing import answer_questions, continue_pages
from llm_core.feedback.rollout import Answer, divergence
from llm_core.feedback.scorer import RewardModel, load_reward_model
from llm_core.model.checkpoint import load_model
from llm_core.model.transformer import Transformer
from llm_core.settings.evaluate import EvaluateConfig
from llm_core.train.machine import prepare

SAMPLES = pa.schema([("model", pa.string()), ("prompt", pa.string()), ("text", pa.string())])


@dataclass(frozen=True)
class Asked:
    """What is asked, the same for every model."""

    pages: HeldOutPages
    benchmark: Benchmark
    problems: list[judged.HeldOutProblem]

    def digest(self, config: EvaluateConfig) -> str:
        """Digest of the judged prompts and of how they are asked: only equal ones can be paired."""
        how = [config.answers, config.temperature, config.max_new_tokens, config.seed]
        what = [[problem.id, problem.messages, problem.check] for problem in self.problems]
        return hashlib.sha256(dump_json([how, what])).hexdigest()


@dataclass
class Measured:
    """One model's rows, figures by name, and sampled answers to the judged problems."""

    rows: list[Row] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)


def run(
    config: EvaluateConfig,
    *,
    base: Path,
    chat: Path,
    aligned: Path,
    reward: Path,
    shards: Path,
    corpus: Path,
    heldout: Path,
    sets: Path,
    out: Path,
    scratch: Path,
    emit: Emit,
) -> Report:
    """Measure the three models on the same held-out material and write `scores/`."""
    places = jobs.Places(sets, _data(config, heldout), scratch / "made", shards)
    device = prepare(config.threads, config.device).device
    emit(Progress(0, None, "models", {"now": "reading"}))
    data = Shards.open(shards)
    asked = _asked(config, data, corpus)
    sizes = len(asked.problems), len(asked.benchmark.choices), len(asked.benchmark.cloze)
    emit(Note("{} problems, {} multiple-choice questions, {} cloze items".format(*sizes)))
    folders = {"base": base, "chat": chat, "aligned": aligned}
    models = {name: load_model(folder).to(device) for name, folder in folders.items()}
    tokenizer = Tokenizer.load(chat)
    measured = {}
    for done, (name, model) in enumerate(models.items()):
        measured[name] = _measure(name, model, tokenizer, asked, config, _teller(emit, done, len(models) + 1, name))
    _reward(load_reward_model(reward).to(device), measured)
    if measured["aligned"].answers:
        found = divergence(models["aligned"], models["chat"], measured["aligned"].answers)
        measured["aligned"].figures["kl_from_chat"] = found
    samples = _samples(config, models, tokenizer, asked)
    outcomes = _tasks(config, folders, places, asked, scratch, emit)
    rows = [row for part in measured.values() for row in part.rows] + _baselines(asked) + jobs.rows_of(outcomes)
    figures = _summary(config, asked, rows, measured)
    figures |= summary.of_tasks(outcomes, config.bootstrap, config.seed)
    figures["data"] = local.digests([*jobs.SAFETY_FILES, *_files(config, places)], places.data)
    figures["counts"]["failed_tasks"] = len(figures["failed"])
    with new_product(out, "scores", {"evaluation_set": figures["evaluation_set"], **figures["counts"]}) as folder:
        write_rows(folder / "rows.parquet", rows)
        pq.write_table(pa.Table.from_pylist(samples, schema=SAMPLES), folder / "samples.parquet")
        (folder / "summary.json").write_bytes(dump_json(figures))
    return Report(summary.flat(figures), summary.tables(figures), samples)


def _data(config: EvaluateConfig, heldout: Path) -> Path:
    data = Path(config.data) if config.data else heldout
    if not data.is_dir():
        raise BadInput(f"evaluate.data: there is no folder {data}")
    return data


def _files(config: EvaluateConfig, places: jobs.Places) -> list[str]:
    """Files of the data folder that the tasks read."""
    own = [task for task in _names(config, places) if task in local.local_names(places.sets)]
    return [local.file_of(task, places.sets) for task in own if task not in local.GENERATED]


def _names(config: EvaluateConfig, places: jobs.Places) -> list[str]:
    return local.chosen(config.tasks, places.sets, places.data)


def _tasks(
    config: EvaluateConfig, folders: Mapping[str, Path], places: jobs.Places, asked: Asked, scratch: Path, emit: Emit
) -> list[jobs.Outcome]:
    """The safety checks and the harness's tasks, model by model."""
    write_sets(asked.benchmark, places.made / "generated")
    known = {field.name for field in fields(jobs.Options)}
    options = jobs.Options(examples=config.task_examples, shots=config.task_shots, **config.model_dump(include=known))
    names = _names(config, places)
    wanted = [
        jobs.Job(task, model, folder, places, options)
        for model, folder in folders.items()
        for task in [*jobs.safety(config.safety, model), *(names if model in config.task_models else [])]
    ]
    kept = scratch / "tasks"
    kept.mkdir(exist_ok=True)

    def told(done: int, job: jobs.Job, outcome: jobs.Outcome | None) -> None:
        share = len(folders) + (done + (outcome is not None)) / len(wanted)
        emit(Progress(share, len(folders) + 1, "models", {"model": job.model, "now": job.task}))
        if outcome is not None and outcome.reason:
            emit(Note(f"{job.task} of {job.model} was left out: {outcome.reason}"))

    return jobs.run_jobs(wanted, seconds=config.task_seconds, kept=kept, told=told)


def _asked(config: EvaluateConfig, data: Shards, corpus: Path) -> Asked:
    return Asked(
        held_out_pages(data, config.validation_tokens),
        generate(corpus, choices=config.choices, cloze=config.cloze, seed=config.seed),
        judged.held_out_problems(corpus, config.problems),
    )


def _teller(emit: Emit, done: int, total: int, model: str) -> Callable[[str, float], None]:
    """Tells how far one model is: what is being done, and which share of the model's work lies behind."""
    return lambda task, share: emit(Progress(done + share, total, "models", {"model": model, "now": task}))


def _measure(
    name: str,
    model: Transformer,
    tokenizer: Tokenizer,
    asked: Asked,
    config: EvaluateConfig,
    tell: Callable[[str, float], None],
) -> Measured:
    """Pages, questions, cloze and problems of one model. Base answers few problems, and only greedily."""
    found = Measured()
    tell("pages", 0.0)
    pages = page_bits_per_byte(model, asked.pages)
    found.figures["bits_per_byte"] = pages.pop("all", None)
    found.figures["bits_per_byte_by_source"] = pages
    tell("questions", 0.3)
    found.rows += questions.choose(name, model, tokenizer, asked.benchmark.choices, plain=name == "base")
    tell("cloze", 0.5)
    found.rows += questions.fill(name, model, tokenizer, asked.benchmark.cloze)
    if name == "base":
        found.rows += _solve(name, model, tokenizer, asked.problems[: config.base_problems], config, tell)[0]
        return found
    rows, _ = _solve(name, model, tokenizer, asked.problems, config, tell)
    sampled, found.answers = _solve(name, model, tokenizer, asked.problems, config, tell, samples=config.answers)
    found.rows += [*rows, *sampled, *judged.shuffled(rows, asked.problems, config.seed)]
    return found


def _solve(
    name: str,
    model: Transformer,
    tokenizer: Tokenizer,
    problems: Sequence[judged.HeldOutProblem],
    config: EvaluateConfig,
    tell: Callable[[str, float], None],
    samples: int = 0,
) -> tuple[list[Row], list[Answer]]:
    """Greedy answers, or with `samples` so many sampled ones to each problem."""
    task, start = (f"{samples} answers", 0.75) if samples else ("greedy answers", 0.6)
    return judged.solve(
        name,
        model,
        tokenizer,
        problems,
        samples=max(1, samples),
        temperature=config.temperature if samples else 0.0,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        told=lambda done: tell(task, start + 0.2 * done / len(problems)),
    )


def _reward(scorer: RewardModel, measured: Mapping[str, Measured]) -> None:
    """Write the reward model's score beside each sampled answer; it judges nothing."""
    room = scorer.backbone.config.context
    for name, part in measured.items():
        rows = select(part.rows, name, judged.TASK, "sampled")
        scores = scorer.score([(a.prompt_tokens + a.tokens)[-room:] for a in part.answers])
        for row, score in zip(rows, scores, strict=True):
            row.reward = score


def _baselines(asked: Asked) -> list[Row]:
    rows = questions.choice_baselines(asked.benchmark.choices) + questions.cloze_baselines(asked.benchmark.cloze)
    return rows + (judged.baselines(asked.problems) if asked.problems else [])


def _samples(
    config: EvaluateConfig, models: Mapping[str, Transformer], tokenizer: Tokenizer, asked: Asked
) -> list[dict[str, str]]:
    """Continued pages, answered docstring questions and answered problems, `samples` in all for each model."""
    third = -(-config.samples // 3)
    pages = [page.tolist() for documents in asked.pages.tokens.values() for page in documents[:third]]
    asking = [item.question for item in asked.benchmark.choices[:third]]
    asking += [problem.question for problem in asked.problems[:third]]
    written = continue_pages(models, tokenizer, pages[:third], config.sample_tokens, config.seed)
    return written + answer_questions(models, tokenizer, asking, config.sample_tokens)


def _summary(
    config: EvaluateConfig, asked: Asked, rows: Sequence[Row], measured: Mapping[str, Measured]
) -> dict[str, Any]:
    models = {}
    for name, part in measured.items():
        found = summary.intervals(rows, name, config.bootstrap, config.seed)
        models[name] = {
            **part.figures,
            **summary.answer_figures(select(rows, name, judged.TASK, "sampled")),
            **{task: interval.value for task, interval in found.items()},
            "intervals": {task: interval.as_dict() for task, interval in found.items()},
        }
    gains = summary.difference(rows, "aligned", "chat", config.bootstrap, config.seed)
    won = summary.win_rates(rows, "aligned", "chat", config.bootstrap, config.seed)
    return {
        "evaluation_set": asked.digest(config),
        "pages": asked.pages.digest,
        "models": models,
        "differences": {"aligned-chat": {task: gain.as_dict() for task, gain in gains.items()}},
        "win_rates": {"aligned-chat": won} if won else {},
        "baselines": summary.baselines(rows),
        "counts": {
            "problems": len(asked.problems),
            "choices": len(asked.benchmark.choices),
            "cloze": len(asked.benchmark.cloze),
            "dropped_choices": asked.benchmark.dropped_choices,
            "dropped_cloze": asked.benchmark.dropped_cloze,
        },
    }
