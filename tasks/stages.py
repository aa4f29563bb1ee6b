"""One Prefect task a stage. A task's whole content is policy: retries, time limit, tags.

Tasks are called directly, never submitted: the stage's child process follows the thread that started it, and a time
limit reaches only a task that runs in the main thread. Prefect's own caching stays off; DVC decides what is fresh.
A task returns a state, so that its page says fresh, restored or ran; Prefect hands the state's path to the next task.
Arguments after the first are the products that a stage stands on: a call that differs from the table is refused.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from llm_core.contract import BadInput
from llm_core.pipeline import stage
from tasks import gpus, places
from tasks.promote import Promotion
from tasks.promote import promote as decide_promotion
from tasks.session import Session
from tasks.votes import Gathered, gather


def _may_pass(_task: object, _run: object, state: State) -> bool:
    """A failure may pass by itself; bad input does not."""
    return not isinstance(state.result(raise_on_failure=False), BadInput)


NETWORK = {"retries": 2, "retry_delay_seconds": 10, "retry_condition_fn": _may_pass, "tags": ["network"]}
DATA = {"tags": ["data"], "timeout_seconds": timedelta(days=2).total_seconds()}
TRAINING = {"tags": ["training"], "timeout_seconds": timedelta(days=14).total_seconds()}


def _perform(session: Session, verb: str, **products: Path) -> State[Path]:
    row = stage(verb)
    if products != {need: session.space.product(need) for need in row.needs}:
        raise TypeError(f"{verb} needs {', '.join(row.needs)} of this workspace, was called with {products}")
    here = session.stale(verb) and places.place_of(session.space, verb) is None
    count = gpus.needed(session.space.config(verb)) if here else 0  # elsewhere the GPUs are those of that machine
    with gpus.slots(count, waits=session.say):
        outcome = session.perform(verb)
    return Completed(name=outcome.state.capitalize(), data=session.space.product(row.makes))


@task(name="acquire", cache_policy=NO_CACHE, **NETWORK)
def acquire(session: Session) -> State[Path]:
    """Crawl the web, read public datasets and files."""
    return _perform(session, "acquire")


@task(name="clean", cache_policy=NO_CACHE, **DATA)
def clean(session: Session, raw: Path) -> State[Path]:
    """Pages become documents; what is dropped keeps its reason."""
    return _perform(session, "clean", raw=raw)


@task(name="tokenize", cache_policy=NO_CACHE, **DATA)
def tokenize(session: Session, corpus: Path) -> State[Path]:
    """Documents become token shards."""
    state = _perform(session, "tokenize", corpus=corpus)
    if session.outcomes["tokenize"].state in ("ran", "restored"):
        session.search_shards()
    return state


@task(name="pretrain", cache_policy=NO_CACHE, **TRAINING)
def pretrain(session: Session, shards: Path) -> State[Path]:
    """The model learns from pages."""
    return _perform(session, "pretrain", shards=shards)


@task(name="sft", cache_policy=NO_CACHE, **TRAINING)
def sft(session: Session, base: Path, shards: Path) -> State[Path]:
    """The model learns to answer."""
    return _perform(session, "sft", base=base, shards=shards)


@task(name="votes", cache_policy=NO_CACHE)
def gather_votes(session: Session) -> Gathered:
    """People's votes come from MLflow into the file that collect reads."""
    return gather(session)


@task(name="collect", cache_policy=NO_CACHE, **TRAINING)
def collect(session: Session, chat: Path, corpus: Path) -> State[Path]:
    """Pairs of answers and the votes on them."""
    return _perform(session, "collect", chat=chat, corpus=corpus)


@task(name="reward", cache_policy=NO_CACHE, **TRAINING)
def reward(session: Session, chat: Path, votes: Path) -> State[Path]:
    """A model of what people prefer."""
    return _perform(session, "reward", chat=chat, votes=votes)


@task(name="align", cache_policy=NO_CACHE, **TRAINING)
def align(session: Session, chat: Path, reward: Path, votes: Path) -> State[Path]:
    """The chat model follows the feedback."""
    return _perform(session, "align", chat=chat, reward=reward, votes=votes)


@task(name="evaluate", cache_policy=NO_CACHE, **TRAINING)
def evaluate(
    session: Session, base: Path, chat: Path, aligned: Path, reward: Path, shards: Path, corpus: Path
) -> State[Path]:
    """What each model can do, with intervals."""
    return _perform(
        session, "evaluate", base=base, chat=chat, aligned=aligned, reward=reward, shards=shards, corpus=corpus
    )


@task(name="promote", cache_policy=NO_CACHE)
def promote(session: Session, scores: Path) -> Promotion:
    """The gate decides who is champion; a refusal is a successful run."""
    return decide_promotion(session, scores)
