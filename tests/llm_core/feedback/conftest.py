"""Votes and a reward model for the small world, made once a session."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Feedback:
    """Product directories: the chat model, votes by the simulated rater, a reward model trained on them."""

    chat: Path
    votes: Path
    reward: Path


@pytest.fixture(scope="session")
def feedback_world(small_world: Any, tmp_path_factory: pytest.TempPathFactory) -> Feedback:
    """A few seconds."""
    from llm_core.feedback import collect, reward
    from llm_core.settings.collect import CollectConfig
    from llm_core.settings.reward import RewardConfig

    root = tmp_path_factory.mktemp("feedback")
    (root / "scratch").mkdir()
    (root / "votes.jsonl").touch()
    asked = {"threads": 1, "samples": 6, "pairs": 8, "max_new_tokens": 6, "validation_share": 0.3, "rater_noise": 0.0}
    collect.run(
        CollectConfig.model_validate(asked), chat=small_world.chat, corpus=small_world.corpus,
        votes_file=root / "votes.jsonl", out=root / "votes", scratch=root / "scratch", emit=lambda event: None,
    )  # fmt: skip
    reward.run(
        RewardConfig.model_validate({"threads": 1, "steps": 12, "batch_pairs": 8, "evaluate_every": 4}),
        chat=small_world.chat, votes=root / "votes", out=root / "reward", scratch=root / "scratch",
        emit=lambda event: None,
    )  # fmt: skip
    return Feedback(small_world.chat, root / "votes", root / "reward")
