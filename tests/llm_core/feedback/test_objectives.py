"""The losses against numbers computed by TRL 1.16, verl and OpenRLHF (shared/data/trl_fixtures, ppo_fixtures)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llm_core.feedback import objectives as o


def close(value: Tensor, expected: float) -> None:
    assert abs(float(value) - expected) < 2e-5 * max(1.0, abs(expected)), (float(value), expected)


@pytest.fixture(scope="module")
def trl(shared_data: Path) -> dict[str, Any]:
    return json.loads((shared_data / "trl_fixtures" / "trl_results.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def ppo(shared_data: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    folder = shared_data / "ppo_fixtures"
    arrays = np.load(folder / "ppo_inputs_outputs.npz")
    return {k: torch.from_numpy(arrays[k]) for k in arrays.files}, json.loads((folder / "ppo_results.json").read_text())


@pytest.fixture(scope="module")
def grpo(shared_data: Path) -> dict[str, Tensor]:
    arrays = np.load(shared_data / "trl_fixtures" / "grpo_batch.npz")
    return {k: torch.from_numpy(arrays[k]) for k in arrays.files}


DPO_CASES: dict[str, dict[str, Any]] = {
    'sigmoid|{"beta": 0.1}': {"beta": 0.1},
    'sigmoid|{"beta": 0.5}': {"beta": 0.5},
    'hinge|{"beta": 0.1}': {"form": "hinge"},
    'ipo|{"beta": 0.1}': {"form": "ipo"},
    'robust|{"beta": 0.1, "label_smoothing": 0.1}': {"form": "robust", "label_smoothing": 0.1},
    'sigmoid_norm|{"beta": 2.0}': {"form": "sigmoid_norm", "beta": 2.0},
    'sigmoid+sft|{"beta": 0.1, "loss_weights": [1.0, 0.2]}': {"sft_weight": 0.2},
}


@pytest.mark.parametrize("case", DPO_CASES)
def test_dpo_from_sequence_logprobs(trl: dict[str, Any], case: str) -> None:
    logps = trl["dpo_sequence_logps"]
    chosen, rejected = torch.tensor(logps["policy"]).view(2, 4)
    ref_chosen, ref_rejected = torch.tensor(logps["ref"]).view(2, 4)
    lengths = [torch.tensor([len(e[k]) for e in trl["examples"]]) for k in ("chosen_ids", "rejected_ids")]
    loss = o.dpo_loss(
        chosen,
        rejected,
        ref_chosen,
        ref_rejected,
        chosen_lengths_P=lengths[0],
        rejected_lengths_P=lengths[1],
        **DPO_CASES[case],
    )
    close(loss, trl["dpo"][case]["loss"])


def test_dpo_starts_at_ln_2() -> None:
    same = torch.tensor([-3.0, -9.0])
    assert float(o.dpo_loss(same, same - 1, same, same - 1)) == pytest.approx(0.69314718, abs=1e-7)


def test_dpo_of_openrlhf(ppo: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
    pairs = [torch.tensor(v) for v in ([-10.0, -12.0], [-14.0, -11.0], [-11.0, -12.5], [-13.0, -12.0])]
    for beta, expected in ppo[1]["openrlhf"]["dpo"].items():
        close(o.dpo_loss(*pairs, beta=float(beta)), expected)


def test_forms_that_need_lengths_say_so() -> None:
    one = torch.zeros(1)
    with pytest.raises(ValueError, match="ipo needs the lengths"):
        o.dpo_loss(one, one, one, one, form="ipo")


def test_reward_loss_from_scores(trl: dict[str, Any], shared_data: Path) -> None:
    chosen, rejected = torch.tensor(trl["reward_scores"]).view(2, 4)
    margin = torch.from_numpy(np.load(shared_data / "trl_fixtures" / "reward_batch.npz")["margin"])
    close(o.reward_loss(chosen, rejected), trl["reward"]["plain"]["loss"])
    close(o.reward_loss(chosen, rejected, margin_P=margin), trl["reward"]["margin"]["loss"])
    close(o.reward_loss(chosen, rejected, centre=0.01), trl["reward"]["center_rewards_coefficient=0.01"]["loss"])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages(grpo: dict[str, Tensor], scale: Any) -> None:
    advantages = o.group_advantages(grpo["rewards"], 4, scale=scale)
    torch.testing.assert_close(advantages, grpo[f"advantages_{scale}"], atol=1e-6, rtol=1e-5)


KL = {"beta": 0.04}
GRPO_CASES: dict[str, dict[str, Any]] = {
    "grpo|beta=0": {"normaliser": "sequence"},
    "dapo|beta=0|eps_high=.28": {"clip_high": 0.28},
    "cispo|beta=0|eps_high=5": {"surrogate": "cispo", "clip_high": 5.0},
    "gspo(grpo+sequence)|beta=0|eps=.2": {"ratio": "sequence", "normaliser": "sequence"},
    "luspo|sequence|beta=0": {"ratio": "sequence", "normaliser": "sequence_sum"},
    "grpo|delta=1.5|beta=0": {"ceiling": 1.5, "normaliser": "sequence"},
    "grpo|beta=0.04|kl_is_corrected=False": {"normaliser": "sequence", **KL},
    "grpo|beta=0.04|kl_is_corrected=True": {"normaliser": "sequence", "corrected_kl": True, **KL},
    "bnpo|beta=0.04|kl_is_corrected=False": {**KL},
    "bnpo|beta=0.04|kl_is_corrected=True": {"corrected_kl": True, **KL},
    "dapo|beta=0.04|kl_is_corrected=False": {"denominator": "all", **KL},
    "dr_grpo|beta=0.04|kl_is_corrected=False": {"normaliser": "constant", **KL},
    "dr_grpo|beta=0.04|kl_is_corrected=True": {"normaliser": "constant", "corrected_kl": True, **KL},
}


@pytest.mark.parametrize("case", GRPO_CASES)
def test_policy_loss(trl: dict[str, Any], grpo: dict[str, Tensor], case: str) -> None:
    options = dict(GRPO_CASES[case])
    if options.get("denominator") == "all":
        options["denominator"] = float(grpo["num_items_in_batch"])
    loss = o.policy_loss(
        grpo["policy_per_token_logps"],
        grpo["old_per_token_logps"],
        grpo["advantages"],
        grpo["completion_mask"].float(),
        reference_BT=grpo["ref_per_token_logps"],
        **options,
    )
    close(loss, trl["grpo"][case]["loss"])


def test_ppo_rewards_whitening_gae_and_kl(ppo: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
    a, setup = ppo[0], ppo[1]["setup"]
    mask = a["mask"]
    rewards = o.token_rewards(a["score"], a["old_logp"], a["ref_logp"], mask, kl_weight=setup["kl_coef"])
    same = {"atol": 2e-6, "rtol": 1e-5}
    torch.testing.assert_close(rewards * mask, a["rewards_token"] * mask, **same)
    whitened = o.whiten(rewards, mask, shift_mean=False)
    torch.testing.assert_close(whitened * mask, a["rewards_whitened_shift_mean_false"] * mask, **same)
    advantages, returns = o.gae(rewards, a["values_old"], mask, gamma=setup["gamma"], lam=setup["lam"])
    torch.testing.assert_close(advantages * mask, a["advantages_raw"] * mask, **same)
    torch.testing.assert_close(returns * mask, a["returns"] * mask, **same)
    torch.testing.assert_close(o.whiten(advantages, mask) * mask, a["advantages_whitened"] * mask, **same)
    for kind in ("k1", "k2", "k3"):
        kl = o.kl_estimate(a["old_logp"], a["ref_logp"], kind)  # type: ignore[arg-type]
        torch.testing.assert_close(kl * mask, a[f"kl_{kind}"] * mask, **same)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("token", "token-mean"), ("sequence_sum", "seq-mean-token-sum"), ("sequence", "seq-mean-token-mean"),
     ("constant", "seq-mean-token-sum-norm")],
)  # fmt: skip
def test_ppo_losses(ppo: tuple[dict[str, Tensor], dict[str, Any]], ours: Any, theirs: str) -> None:
    a, results = ppo
    loss = o.policy_loss(a["new_logp"], a["old_logp"], a["advantages_whitened"], a["mask"], normaliser=ours)
    close(loss, results["policy_loss"][theirs])
    value = o.value_loss(a["values_new"], a["values_old"], a["returns"], a["mask"], normaliser=ours)
    close(value, results["value_loss"][theirs])


def test_value_loss_without_clip_and_adaptive_kl(ppo: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
    a, results = ppo
    value = o.value_loss(a["values_new"], a["values_old"], a["returns"], a["mask"], clip=None)
    close(value, results["openrlhf"]["value_loss_noclip"])
    setup = results["adaptive_kl"]
    weight = setup["init"]
    for observed, expected in zip(setup["observed"], setup["coef_after"], strict=True):
        weight = o.adapted_kl_weight(
            weight, observed, target=setup["target"], horizon=setup["horizon"], batch=setup["n_steps"]
        )
        assert weight == pytest.approx(expected, rel=1e-9)


def test_token_mean_is_the_same_in_any_number_of_microbatches() -> None:
    torch.manual_seed(0)
    new, old = torch.randn(4, 5), torch.randn(4, 5)
    mask = (torch.arange(5)[None] < torch.tensor([5, 2, 1, 4])[:, None]).float()
    advantages = torch.tensor([1.0, -1.0, 0.5, 2.0])
    whole = o.policy_loss(new, old, advantages, mask)
    parts = [
        o.policy_loss(new[i : i + 1], old[i : i + 1], advantages[i : i + 1], mask[i : i + 1], denominator=12.0)
        for i in range(4)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)
