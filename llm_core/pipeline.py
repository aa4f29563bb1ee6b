"""The table: one row a stage, in order. dvc.yaml, the CLI's choices and the README's table are made from it.

A row names its module as text, imported when the stage runs, so that looking at the table costs no torch import.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from llm_core.contract import BadInput, Config, Report
from llm_core.settings.acquire import AcquireConfig
from llm_core.settings.align import AlignConfig
from llm_core.settings.clean import CleanConfig
from llm_core.settings.collect import CollectConfig
from llm_core.settings.evaluate import EvaluateConfig
from llm_core.settings.pretrain import PretrainConfig
from llm_core.settings.reward import RewardConfig
from llm_core.settings.sft import SftConfig
from llm_core.settings.tokenize import TokenizeConfig


@dataclass(frozen=True)
class Stage:
    """A verb that turns products into a product. `files` maps a keyword of `run` to a tracked path it reads."""

    verb: str
    module: str
    config: type[Config]
    needs: tuple[str, ...]
    makes: str
    what: str
    files: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> Callable[..., Report]:
        """The stage's function, its module imported now."""
        run: Callable[..., Report] = importlib.import_module(self.module).run
        return run


PIPELINE: tuple[Stage, ...] = (
    Stage("acquire", "llm_core.data.acquire", AcquireConfig, (), "raw",
          "crawl the web, read public datasets and files", {"forget": "forget.txt"}),
    Stage("clean", "llm_core.data.clean", CleanConfig, ("raw",), "corpus",
          "extract text, repair characters, filter, drop duplicates; every drop keeps its reason",
          {"rules": "rules", "lists": "lists", "heldout": "heldout", "forget": "forget.txt"}),
    Stage("tokenize", "llm_core.data.tokenize", TokenizeConfig, ("corpus",), "shards",
          "train the tokenizer, write token shards, split off validation"),
    Stage("pretrain", "llm_core.train.pretrain", PretrainConfig, ("shards",), "base", "train the model on all pages"),
    Stage("sft", "llm_core.train.sft", SftConfig, ("base", "shards"), "chat", "tune the model on dialogues"),
    Stage("collect", "llm_core.feedback.collect", CollectConfig, ("chat", "corpus"), "votes",
          "pairs of answers with a preference, by people or the simulated rater",
          {"votes_file": "feedback/votes.jsonl"}),
    Stage("reward", "llm_core.feedback.reward", RewardConfig, ("chat", "votes"), "reward",
          "train the reward model on the votes"),
    Stage("align", "llm_core.feedback.align", AlignConfig, ("chat", "reward", "votes"), "aligned",
          "tune the chat model on the feedback"),
    Stage("evaluate", "llm_core.evaluation.evaluate", EvaluateConfig,
          ("base", "chat", "aligned", "reward", "shards", "corpus"), "scores",
          "perplexity, benchmarks and accuracies with intervals, one row a prompt",
          {"heldout": "heldout", "sets": "llm_core/evaluation/benchmarks/sets"}),
)  # fmt: skip

MODELS = frozenset({"base", "chat", "reward", "aligned"})


def stage(verb: str) -> Stage:
    """The row of a verb. Raises `BadInput` for an unknown one."""
    if verb not in VERBS:
        raise BadInput(f"no stage {verb!r}; the stages are {', '.join(VERBS)}")
    return next(row for row in PIPELINE if row.verb == verb)


VERBS: tuple[str, ...] = tuple(row.verb for row in PIPELINE)


def product_path(product: str) -> str:
    """Where a product stands, relative to the workspace: models/ for models, data/ for the rest."""
    return f"{'models' if product in MODELS else 'data'}/{product}"
