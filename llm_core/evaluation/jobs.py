"""Tasks that may fail or hang, each for one model in a child process: what goes wrong costs that task alone.

An outcome is kept in the stage's scratch folder, so a stage that was killed does not measure again what it had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from llm_core.contract import BadInput
from llm_core.data.bpe import Tokenizer
from llm_core.data.shards import Shards
from llm_core.evaluation import extraction, refusal, toxicity
from llm_core.evaluation.benchmarks import local
from llm_core.evaluation.rows import Mode, Row
from llm_core.model.checkpoint import load_model
from llm_core.model.transformer import Transformer
from llm_core.parallel import isolated
from llm_core.sealed import read_sealed, write_sealed
from llm_core.train.machine import prepare

SAFETY = {"refusal": refusal.HARMFUL, "toxicity": toxicity.TASK, "privacy": extraction.TRAINED}
"""Safety checks by the settings' name, as they stand in the rows."""
SAFETY_FILES = (refusal.FILE, toxicity.FILE)


@dataclass(frozen=True)
class Places:
    """Folders that tasks read: task files and lists, the user's data, sets made from the corpus, token shards."""

    sets: Path
    data: Path
    made: Path
    shards: Path

    def without(self, text: str) -> str:
        """`text` with the folders' names in place of their paths, which differ from machine to machine."""
        for name, path in asdict(self).items():
            text = text.replace(str(path), name.upper())
        return text


@dataclass(frozen=True)
class Options:
    """How much is asked; the fields are those of the stage's settings."""

    examples: int = 0
    shots: int | None = None
    safety_prompts: int = 100
    safety_samples: int = 4
    safety_tokens: int = 20
    privacy_documents: int = 200
    privacy_prompt: int = 32
    privacy_tokens: int = 16
    threads: int = 0
    device: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Job:
    """One task for one model."""

    task: str
    model: str
    folder: Path
    places: Places
    options: Options = Options()


@dataclass
class Outcome:
    """What a job found. `reason` says in one sentence why it found nothing; it is empty after a success."""

    task: str
    model: str
    rows: list[Row] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    reason: str = ""


def safety(checks: Sequence[str], model: str) -> list[str]:
    """Tasks of the safety checks for a model. base is not asked whether it refuses: it knows no dialogues."""
    return [task for check, task in SAFETY.items() if check in checks and not (check == "refusal" and model == "base")]


def rows_of(outcomes: Sequence[Outcome]) -> list[Row]:
    """All rows; people's texts, which every model stands beside, once."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    people = {(row.task, row.prompt_id): row for row in rows if not row.model}
    return [row for row in rows if row.model] + list(people.values())


def run_jobs(
    jobs: Sequence[Job], *, seconds: float, kept: Path, told: Callable[[int, Job, Outcome | None], None]
) -> list[Outcome]:
    """Outcomes in order. `seconds`: processor time of a job, six times as long by the clock.

    `told` hears of each job, with its number, before it (None) and after it. What `told` raises ends the work;
    outcomes so far are kept.
    """
    outcomes = []
    for done, job in enumerate(jobs):
        told(done, job, None)
        path = kept / f"{_key(job)}.json"
        outcome = _read(path)
        if outcome is None:
            (outcome,) = isolated(perform, [job], seconds=seconds, failed=_Failed(seconds))
            if not outcome.reason:
                write_sealed(path, asdict(outcome))
        told(done, job, outcome)
        outcomes.append(outcome)
    return outcomes


def perform(job: Job) -> Outcome:
    """Do one job in this process. Whatever it raises becomes the outcome's reason."""
    try:
        rows, figures = _measure(job)
        return Outcome(job.task, job.model, rows, {name: float(value) for name, value in figures.items()})
    except BadInput as error:
        return Outcome(job.task, job.model, reason=job.places.without(str(error)))
    except Exception as error:  # a task of the harness may raise anything
        first = next(iter(str(error).splitlines()), "")
        return Outcome(job.task, job.model, reason=job.places.without(f"{type(error).__name__}: {first}"[:500]))


class _Failed:
    """The outcome of a job whose process did not live to tell."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, job: Job, end: str) -> Outcome:
        reason = f"took longer than {self.seconds:g} s" if end == "timeout" else "its process ended (out of memory?)"
        return Outcome(job.task, job.model, reason=reason)


def _key(job: Job) -> str:
    """Names an outcome in scratch, which belongs to one fingerprint of settings, inputs and code."""
    return hashlib.sha256(f"{job.task}\0{job.model}".encode()).hexdigest()[:32]


def _read(path: Path) -> Outcome | None:
    if not path.is_file():
        return None
    found: dict[str, Any] = read_sealed(path)
    return Outcome(**{**found, "rows": [Row(**row) for row in found["rows"]]})


@lru_cache(maxsize=1)
def _load(folder: Path, threads: int, device: str) -> tuple[Transformer, Tokenizer]:
    """The child keeps the last model, as jobs come model by model."""
    machine = prepare(threads, device)
    return load_model(folder).to(machine.device).eval(), Tokenizer.load(folder)


def _measure(job: Job) -> tuple[list[Row], dict[str, float]]:
    options, places = job.options, job.places
    model, tokenizer = _load(job.folder, options.threads, options.device)
    if job.task == refusal.HARMFUL:
        most, length = options.safety_prompts, options.safety_tokens
        rows = refusal.refusals(
            job.model, model, tokenizer, sets=places.sets, data=places.data, most=most, max_new_tokens=length
        )
        return rows, {}
    if job.task == toxicity.TASK:
        found = _material(places.sets, places.data, options.safety_prompts)
        rows, figures = toxicity.toxicity(
            job.model, model, tokenizer, found,
            samples=options.safety_samples, max_new_tokens=options.safety_tokens, seed=options.seed,
        )  # fmt: skip
        return rows + toxicity.people(found), figures
    if job.task == extraction.TRAINED:
        shards, half = Shards.open(places.shards, verify=False), model.config.context // 2
        return extraction.extraction(
            job.model, model, shards,
            documents=options.privacy_documents,
            prompt_tokens=min(half, options.privacy_prompt), tokens=min(half, options.privacy_tokens),
        ), {}  # fmt: skip
    if job.task == local.WIKITEXT:
        return [], _wikitext(model, tokenizer, places.data)
    return _harness(job, model, tokenizer)


_material = lru_cache(maxsize=1)(toxicity.material)


def _wikitext(model: Transformer, tokenizer: Tokenizer, data: Path) -> dict[str, float]:
    from llm_core.evaluation.wikitext import perplexities

    file = local.find(data, local.WIKITEXT_FILE)
    if file is None:
        raise BadInput(f"evaluate.data: {local.WIKITEXT_FILE} is not in the folder")
    return perplexities(model, tokenizer, file.read_text(encoding="utf-8"))


def _harness(job: Job, model: Transformer, tokenizer: Tokenizer) -> tuple[list[Row], dict[str, float]]:
    from llm_core.evaluation import harness

    places = job.places
    lm = harness.as_harness_model(model, tokenizer)
    task: Any = job.task
    if task in local.local_names(places.sets):
        task = local.configuration(task, places.sets, places.made if task in local.GENERATED else places.data)
        task["dataset_kwargs"]["cache_dir"] = str(places.made / "datasets")
    options = job.options
    found = harness.run_task(lm, task, examples=options.examples, shots=options.shots, seed=options.seed)
    rows = [
        Row(job.model, job.task, _mode(document.scored), document.id, document.prompt, document.answer, score)
        for document in found.documents
        if (score := main_score(document.metrics)) is not None
    ]
    return rows, found.figures


def _mode(scored: bool) -> Mode:
    return "likelihood" if scored else "greedy"


def main_score(metrics: dict[str, float]) -> float | None:
    """A document's accuracy, else its exact match, else its only figure within [0, 1]."""
    for name in ("acc", "exact_match"):
        if name in metrics:
            return metrics[name]
    shares = [value for value in metrics.values() if 0.0 <= value <= 1.0]
    return shares[0] if shares else None
