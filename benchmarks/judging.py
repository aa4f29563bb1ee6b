"""What benchmarks/feedback.py and benchmarks/reward_hacking.py share: a model's figures on the held-out problems."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_core.artifacts import digest, dump_json, write_atomic
from llm_core.data.bpe import Tokenizer
from llm_core.data.shards import Shards
from llm_core.evaluation import problems
from llm_core.evaluation.perplexity import HeldOutPages, held_out_pages, page_bits_per_byte
from llm_core.feedback.preferences import text_id
from llm_core.feedback.rollout import divergence
from llm_core.feedback.scorer import RewardModel, load_reward_model
from llm_core.model.checkpoint import load_model
from llm_core.model.transformer import Transformer
from llm_core.release.scores import Scores

MAX_NEW_TOKENS, TEMPERATURE, SEED = 24, 1.0, 0


@dataclass(frozen=True)
class Products:
    """Products of a finished run that are only read."""

    chat: Path
    reward: Path
    votes: Path
    corpus: Path
    shards: Path

    @classmethod
    def of(cls, workspace: Path) -> Products:
        """Those in a workspace; raises `SystemExit` naming the first that is missing."""
        found = cls(
            *(workspace / part for part in ("models/chat", "models/reward", "data/votes", "data/corpus", "data/shards"))
        )
        for path in (found.chat, found.reward, found.votes, found.corpus, found.shards):
            if not (path / "manifest.json").is_file():
                raise SystemExit(f"{path}: no product there; `groundup run` makes it (--workspace names another place)")
        return found

    def work(self, folder: Path, problems: int) -> Path:
        """Where in `folder` to remember what is measured on so many problems: never what was measured of others."""
        found = (self.chat, self.reward, self.votes, self.corpus, self.shards)
        return folder / text_id(str(problems), *map(digest, found))[:12]


class Judge:
    """Asks every model the same held-out problems, greedily and sampled, and reads the same held-out pages."""

    def __init__(self, products: Products, count: int, answers: int, pages_tokens: int = 100_000) -> None:
        self.answers = answers
        self.problems = problems.held_out_problems(products.corpus, count)
        self.pages: HeldOutPages = held_out_pages(Shards.open(products.shards), pages_tokens)
        self.tokenizer = Tokenizer.load(products.chat)
        self.chat = load_model(products.chat)
        self.reward: RewardModel = load_reward_model(products.reward)

    def figures(self, name: str, model: Transformer) -> dict[str, Any]:
        """Everything measured of one model: scores and lengths by prompt, and single figures."""
        common: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS, "seed": SEED, "told": lambda _: None}
        asked = (name, model, self.tokenizer, self.problems)
        greedy, _ = problems.solve(*asked, samples=1, temperature=0.0, **common)
        sampled, given = problems.solve(*asked, samples=self.answers, temperature=TEMPERATURE, **common)
        right: dict[str, list[float]] = {problem.id: [] for problem in self.problems}
        lengths: dict[str, list[int]] = {problem.id: [] for problem in self.problems}
        for row in sampled:
            right[row.prompt_id].append(row.score)
            lengths[row.prompt_id].append(len(row.answer))
        context = model.config.context
        rewards = self.reward.score([(a.prompt_tokens + a.tokens)[:context] for a in given])
        return {
            "greedy": {row.prompt_id: row.score for row in greedy},
            "sampled": {prompt: sum(scores) / len(scores) for prompt, scores in right.items()},
            "pass_at_8": {prompt: pass_at(scores, 8) for prompt, scores in right.items()},
            "lengths": {prompt: sum(found) / len(found) for prompt, found in lengths.items()},
            "mean_length": sum(row.tokens or 0 for row in sampled) / len(sampled),
            "ended": sum(bool(row.finished) for row in sampled) / len(sampled),
            "bits_per_byte": page_bits_per_byte(model, self.pages)["all"],
            "kl_from_chat": divergence(model, self.chat, given),
            "reward": sum(rewards) / len(rewards),
            "samples": [{"prompt": row.prompt, "answer": row.answer} for row in sampled[:: 97 * self.answers][:8]],
        }

    def remembered(self, name: str, folder: Path, path: Path) -> dict[str, Any]:
        """The figures in `path`, measured now if they are not there yet."""
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, dump_json(self.figures(name, load_model(folder))))
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def pass_at(scores: Sequence[float], k: int) -> float:
    """The chance that one of `k` answers is right, without bias from n >= k drawn ones (Chen et al. 2021)."""
    n, right = len(scores), int(sum(scores))
    missed = 1.0
    for i in range(min(k, n)):
        missed *= max(0, n - right - i) / (n - i)
    return 1 - missed


def scores_of(name: str, found: dict[str, Any]) -> Scores:
    """What the gate reads."""
    return Scores(
        model=name,
        evaluation_set="benchmark",
        pages="benchmark",
        sampled=found["sampled"],
        greedy=found["greedy"],
        bits_per_byte=found["bits_per_byte"],
        mean_length=found["mean_length"],
        ended=found["ended"],
        kl_from_chat=found["kl_from_chat"],
        lengths=found["lengths"],
    )
