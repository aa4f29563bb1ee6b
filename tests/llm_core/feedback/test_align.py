"""align on a small world, by every method: starts at the reference, learns, resumes exactly, or stays chat."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_core.artifacts import digest, verify
from llm_core.contract import BadInput, Event, Metric, Note, Progress, Report, Stop
from llm_core.feedback import align
from llm_core.feedback.online import Online
from llm_core.feedback.pairwise import Pairwise
from llm_core.feedback.preferences import read_votes, write_votes
from llm_core.feedback.scorer import RewardModel
from llm_core.model.checkpoint import load_model
from llm_core.settings.align import AlignConfig

ONLINE = {"rollouts": 3, "prompts": 4, "samples": 4, "epochs": 2, "minibatches": 2, "evaluate_every": 2}
ALIGN = {
    "threads": 1, "steps": 12, "batch_pairs": 8, "evaluate_every": 6, "kl_prompts": 8, "max_new_tokens": 6,
    "online": ONLINE,
}  # fmt: skip
Aligner = Callable[..., Report]


def quiet(event: Event) -> None:
    """A listener that hears nothing."""


def settings(changes: dict[str, Any]) -> AlignConfig:
    return AlignConfig.model_validate(ALIGN | changes | {"online": ONLINE | changes.get("online", {})})


@pytest.fixture
def aligner(feedback_world: Any, tmp_path: Path) -> Aligner:
    def run(name: str, emit: Callable[[Event], None] = quiet, votes: Path | None = None, **changes: Any) -> Report:
        scratch = tmp_path / f"scratch-{name}"
        scratch.mkdir(exist_ok=True)
        return align.run(
            settings(changes), chat=feedback_world.chat, reward=feedback_world.reward,
            votes=votes or feedback_world.votes, out=tmp_path / name, scratch=scratch, emit=emit,
        )  # fmt: skip

    return run


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_dpo_learns_the_votes_and_pays_a_little_divergence(
    aligner: Aligner, feedback_world: Any, tmp_path: Path
) -> None:
    report = aligner("aligned", steps=40, learning_rate=1e-3, evaluate_every=20)
    assert report.metrics["held_out_margin"] > 0
    assert 0 < report.metrics["kl_from_chat"] < 20
    assert {"reward_chat", "reward_aligned", "sampled_right_chat", "sampled_right_aligned"} <= report.metrics.keys()
    assert {sample["model"] for sample in report.samples} == {"chat", "aligned", "step 20", "step 40"}
    assert load_model(tmp_path / "aligned").config == load_model(feedback_world.chat).config


def test_dpo_logs_what_tells_how_it_goes(aligner: Aligner) -> None:
    events: list[Event] = []
    aligner("logged", events.append)
    first = next(event.values for event in events if isinstance(event, Metric))
    names = ("reward_chosen", "reward_rejected", "margin", "accuracy", "logprob_chosen", "logprob_rejected", "entropy",
             "token_accuracy", "gradient_norm", "tokens_chosen", "tokens_rejected", "learning_rate")  # fmt: skip
    assert {f"train/{name}" for name in names} <= first.keys()
    assert first["train/entropy"] > 0
    assert 0 < first["train/token_accuracy"] <= 1
    assert first["train/margin"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("method", ["dpo", "grpo", "ppo"])
def test_a_stopped_run_ends_with_the_same_bytes(aligner: Aligner, tmp_path: Path, method: str) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.done == 7:
            raise Stop

    whole = aligner("whole", method=method)
    with pytest.raises(Stop):
        aligner("stopped", emit=stop, method=method)
    resumed = aligner("stopped", method=method)
    assert digest(tmp_path / "whole") == digest(tmp_path / "stopped")
    assert whole.metrics == resumed.metrics
    assert whole.samples == resumed.samples


KILLED = """
import json, os, signal, sys
from pathlib import Path
from llm_core.contract import Progress
from llm_core.feedback import align
from llm_core.settings.align import AlignConfig

config, at = json.loads(sys.argv[1]), int(sys.argv[3])
folders = {name: Path(path) for name, path in json.loads(sys.argv[2]).items()}

def emit(event):
    if isinstance(event, Progress) and event.done == at:
        os.kill(os.getpid(), signal.SIGKILL)

align.run(AlignConfig.model_validate(config), emit=emit, **folders)
"""


@pytest.mark.parametrize(
    ("method", "at"),
    [
        ("grpo", 6),
        ("ppo", 7),
        pytest.param("grpo", 9, marks=pytest.mark.soak),
        pytest.param("ppo", 2, marks=pytest.mark.soak),
    ],
)
def test_kill_9_within_a_rollout_ends_with_the_same_bytes(
    aligner: Aligner, feedback_world: Any, tmp_path: Path, method: str, at: int
) -> None:
    changes = {"method": method, "save_every_seconds": 1e-6, "online": {"kl_target": 0.5, "kl_horizon": 50}}
    aligner("whole", **changes)
    scratch = tmp_path / "scratch-killed"
    scratch.mkdir()
    folders = {"chat": feedback_world.chat, "reward": feedback_world.reward, "votes": feedback_world.votes}
    folders |= {"out": tmp_path / "killed", "scratch": scratch}
    config = settings(changes).model_dump_json()
    given = [config, json.dumps({name: str(path) for name, path in folders.items()}), str(at)]
    done = subprocess.run([sys.executable, "-c", KILLED, *given], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted(path.name for path in scratch.glob("step-*"))[-1] == f"step-{at - 1:08d}"
    assert not (tmp_path / "killed").exists()
    aligner("killed", **changes)
    assert digest(tmp_path / "whole") == digest(tmp_path / "killed")


def test_a_policy_that_is_not_the_reference_is_stopped(aligner: Aligner, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Pairwise.known
    monkeypatch.setattr(Pairwise, "known", lambda *given: known(*given) + torch.tensor([[0.1], [-0.1]]))
    with pytest.raises(RuntimeError, match="does not start at the reference"):
        aligner("wrong")


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_online_on_the_checked_answer_learns(
    aligner: Aligner, tmp_path: Path, feedback_world: Any, method: str
) -> None:
    events: list[Event] = []
    online = {"rollouts": 30, "prompts": 12, "samples": 8, "epochs": 1, "minibatches": 1, "reward": "checked",
              "learning_rate": 3e-3, "kl_weight": 0.01, "evaluate_every": 30}  # fmt: skip
    report = aligner("aligned", events.append, method=method, online=online, kl_prompts=100)
    verify(tmp_path / "aligned")
    curve = [event.values.get("train/score_checked") for event in events if isinstance(event, Metric)]
    right = [value for value in curve if value is not None]
    assert sum(right[-5:]) / 5 > sum(right[:5]) / 5 + 0.1
    assert report.metrics["kl_from_chat"] > 0
    assert weights(tmp_path / "aligned") != weights(feedback_world.chat)


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_online_logs_what_tells_how_it_goes(aligner: Aligner, method: str) -> None:
    events: list[Event] = []
    report = aligner("logged", events.append, method=method, online={"reward": "mix", "evaluate_every": 1})
    curves = [event.values for event in events if isinstance(event, Metric)]
    names = ["kl", "kl_weight", "entropy", "score", "score_deviation", "score_model", "score_checked", "flat_groups",
             "non_score_reward", "rlhf_reward", "approx_kl", "clip_fraction", "clip_low", "clip_high", "ratio",
             "ratio_variance", "policy_loss", "answer_tokens", "answer_tokens_least", "answer_tokens_most", "cut_share",
             "ended", "episodes", "learning_rate", "gradient_norm", "sampler_gap"]  # fmt: skip
    names += ["value_loss", "value_clip_fraction"] if method == "ppo" else []
    first = curves[0]
    assert {f"train/{name}" for name in names} <= first.keys()
    assert first["train/ratio"] == 1.0
    assert first["train/ratio_variance"] == 0.0
    assert first["train/kl"] == 0.0
    assert first["train/sampler_gap"] < 1e-4
    assert first["train/episodes"] == 16
    second = next(values for values in curves[1:] if "train/ratio" in values)
    assert second["train/ratio_variance"] > 0
    looks = [event.text for event in events if isinstance(event, Note) and "sampled:" in event.text]
    assert len(looks) == 3
    assert all(text.count(" -> ") == 2 for text in looks)
    assert len([row for row in report.samples if row["model"] == "step 4"]) == 8
    assert {"held_out_score", "held_out_kl", "held_out_right", "held_out_ended"} <= report.metrics.keys()


def test_a_first_ratio_that_is_not_one_stops_the_run(aligner: Aligner, monkeypatch: pytest.MonkeyPatch) -> None:
    rolled = Online._roll_out

    def wrong(self: Online, actor: Any, rollout: int) -> None:
        rolled(self, actor, rollout)
        actor.old_BA.add_(1e-3)

    monkeypatch.setattr(Online, "_roll_out", wrong)
    with pytest.raises(RuntimeError, match=r"ratio of new to old probabilities is off by 0\.001 on a first"):
        aligner("wrong", method="grpo")


def test_a_sampler_that_is_not_the_policy_stops_the_run(aligner: Aligner, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = Online.sample

    def colder(self: Online, *given: Any) -> Any:
        drawn = sample(self, *given)
        for one in drawn:
            one.logprobs[:] = [value / 0.7 for value in one.logprobs]
        return drawn

    monkeypatch.setattr(Online, "sample", colder)
    with pytest.raises(RuntimeError, match="the policy is not what was sampled"):
        aligner("wrong", method="grpo")


@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_with_lora_the_reference_is_the_model_without_its_additions(
    aligner: Aligner, feedback_world: Any, tmp_path: Path, method: str
) -> None:
    events: list[Event] = []
    report = aligner("lora", events.append, method=method, lora={"rank": 4}, learning_rate=1e-2,
                     online={"learning_rate": 1e-2})  # fmt: skip
    assert report.metrics["kl_from_chat"] != 0
    assert (tmp_path / "lora" / "adapter" / "adapter_model.safetensors").is_file()
    ours, theirs = load_model(tmp_path / "lora").state_dict(), load_model(feedback_world.chat).state_dict()
    changed = {name for name, value in ours.items() if not torch.equal(value, theirs[name])}
    assert changed
    assert all(name.endswith("_proj.weight") for name in changed)
    if method == "grpo":
        kl = [event.values["train/kl"] for event in events if isinstance(event, Metric) and "train/kl" in event.values]
        assert kl[0] == 0.0
        assert kl[-1] != 0.0


def test_the_kl_weight_follows_its_target(aligner: Aligner) -> None:
    events: list[Event] = []
    online = {"kl_target": 1e-6, "kl_horizon": 100, "learning_rate": 5e-3, "reward": "checked"}
    report = aligner("aligned", events.append, method="grpo", online=online)
    told = [e.values["train/kl_weight"] for e in events if isinstance(e, Metric) and "train/kl_weight" in e.values]
    assert told[0] == 0.05
    # the first rollout has no divergence: the weight falls by 20% x 16 answers / 100, then rises as much
    assert told[4] == pytest.approx(0.05 * (1 - 0.2 * 0.16))
    assert told[8] == pytest.approx(told[4] * (1 + 0.2 * 0.16))
    assert report.metrics["kl_weight"] == pytest.approx(told[8] * (1 + 0.2 * 0.16))


def test_a_pool_without_votes_is_the_users_error(aligner: Aligner) -> None:
    with pytest.raises(BadInput, match=r"align\.pool = 'dataset': there is no vote of this kind, only of simulated"):
        aligner("none", pool="dataset")


def stays_chat(run: Callable[..., Report], tmp_path: Path, chat: Path, **changes: Any) -> tuple[Report, list[str]]:
    notes: list[str] = []
    report = run("stays", lambda event: notes.append(getattr(event, "text", "")), **changes)
    assert report.metrics["steps"] == 0
    assert report.metrics["kl_from_chat"] == 0.0
    assert weights(tmp_path / "stays") == weights(chat)
    return report, [note for note in notes if note.endswith("aligned is chat, unchanged")]


def test_too_few_clear_votes_leave_chat_as_it_is(aligner: Aligner, feedback_world: Any, tmp_path: Path) -> None:
    _, notes = stays_chat(aligner, tmp_path, feedback_world.chat, batch_pairs=5000)
    assert "too few clear votes" in notes[0]


def test_too_few_prompts_leave_chat_as_it_is(aligner: Aligner, feedback_world: Any, tmp_path: Path) -> None:
    _, notes = stays_chat(aligner, tmp_path, feedback_world.chat, method="grpo", online={"prompts": 5000})
    assert "too few prompts" in notes[0]


@pytest.mark.parametrize("method", ["grpo", "ppo"])
@pytest.mark.parametrize(
    ("value", "said"),
    [(float("nan"), "the reward is not a number for 3 of"), (0.25, "the reward is 0.25 for all of")],
    ids=["nan", "constant"],
)
def test_a_reward_that_says_nothing_leaves_chat_as_it_is(
    aligner: Aligner, feedback_world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, value: float,
    said: str,
) -> None:  # fmt: skip
    score, calls = RewardModel.score, list[int]()

    def broken(self: RewardModel, sequences: Any, **more: Any) -> list[float]:
        calls.append(len(sequences))
        scores = score(self, sequences, **more)
        return [value] * len(scores) if value == value else [value] * 3 + scores[3:]

    monkeypatch.setattr(RewardModel, "score", broken)
    report, notes = stays_chat(
        aligner, tmp_path, feedback_world.chat, method=method, online={"missing_end_penalty": 0.0}
    )
    assert said in notes[0]
    assert report.metrics["useless_reward"] == 1.0


def test_a_reward_that_breaks_on_the_way_leaves_chat_as_it_is(
    aligner: Aligner, feedback_world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, calls = RewardModel.score, list[int]()

    def broken(self: RewardModel, sequences: Any, **more: Any) -> list[float]:
        calls.append(len(sequences))
        scores = score(self, sequences, **more)
        return [float("inf"), *scores[1:]] if len(calls) == 3 else scores

    monkeypatch.setattr(RewardModel, "score", broken)
    _, notes = stays_chat(aligner, tmp_path, feedback_world.chat, method="grpo")
    assert "the reward is not a number for 1 of 16 answers" in notes[0]


def test_prompts_that_nothing_checks_are_refused(aligner: Aligner, feedback_world: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    (tmp_path / "votes").mkdir()
    votes = [replace(vote, check=None) for vote in read_votes(feedback_world.votes)]
    write_votes(tmp_path / "votes" / "pairs.parquet", votes)
    with pytest.raises(BadInput, match=r"align\.online\.reward = 'checked': none of the votes' \d+ prompts has"):
        aligner("none", method="grpo", votes=tmp_path / "votes", online={"reward": "checked"})


def test_prompts_longer_than_the_context_are_counted(aligner: Aligner, feedback_world: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    (tmp_path / "votes").mkdir()
    votes = read_votes(feedback_world.votes)
    endless = [{"role": "user", "content": "1 " * 500}]
    votes.append(replace(votes[0], id="long", prompt=endless, split="train"))
    write_votes(tmp_path / "votes" / "pairs.parquet", votes)
    assert aligner("counted", method="grpo", votes=tmp_path / "votes").metrics["prompts_too_long"] == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"online": {"samples": 1}}, "online.samples"), ({"online": {"minibatches": 17}}, "cannot be cut")],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        settings({"method": "grpo"} | changes)
