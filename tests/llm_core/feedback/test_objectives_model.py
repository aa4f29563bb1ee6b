"""The losses through the project's own Transformer, with TRL's weights: losses, gradient norms and gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llm_core.feedback import objectives as o
from llm_core.model.config import ModelConfig
from llm_core.model.transformer import Transformer
from llm_core.train.loss import sequence_logprobs


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "trl_fixtures"


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "trl_results.json").read_text())  # type: ignore[no-any-return]


def arrays(path: Path) -> dict[str, Tensor]:
    loaded = np.load(path)
    return {name: torch.from_numpy(loaded[name]) for name in loaded.files}


def llama(folder: Path, name: str) -> Transformer:
    facts = json.loads((folder / "llama_config.json").read_text())
    model = Transformer(
        ModelConfig(
            "llama",
            vocab_size=facts["vocab_size"],
            layers=facts["num_hidden_layers"],
            heads=facts["num_attention_heads"],
            kv_heads=facts["num_key_value_heads"],
            width=facts["hidden_size"],
            hidden=facts["intermediate_size"],
            context=facts["max_position_embeddings"],
        )
    )
    model.load_state_dict(arrays(folder / f"llama_{name}.npz"))
    return model


def agrees(model: Transformer, loss: Tensor, expected: dict[str, Any], extra: list[Tensor] | None = None) -> None:
    assert abs(float(loss.detach()) - expected["loss"]) < 2e-5 * max(1.0, abs(expected["loss"]))
    model.zero_grad()
    for tensor in extra or []:
        tensor.grad = None
    loss.backward()
    grads = [p.grad for p in [*model.parameters(), *(extra or [])] if p.grad is not None]
    norm = float(torch.stack([g.norm() for g in grads]).norm())
    assert norm == pytest.approx(expected["grad_norm"], rel=1e-4)


DPO_CASES: dict[str, dict[str, Any]] = {
    'sigmoid|{"beta": 0.1}': {},
    'sigmoid|{"beta": 0.5}': {"beta": 0.5},
    'hinge|{"beta": 0.1}': {"form": "hinge"},
    'ipo|{"beta": 0.1}': {"form": "ipo"},
    'robust|{"beta": 0.1, "label_smoothing": 0.1}': {"form": "robust", "label_smoothing": 0.1},
    'sigmoid_norm|{"beta": 2.0}': {"form": "sigmoid_norm", "beta": 2.0},
    'sigmoid+sft|{"beta": 0.1, "loss_weights": [1.0, 0.2]}': {"sft_weight": 0.2},
    'sigmoid|{"beta": 0.1, "ld_alpha": 0.5}': {"ld_alpha": 0.5},
}


@pytest.mark.parametrize("case", DPO_CASES)
def test_dpo(folder: Path, results: dict[str, Any], case: str) -> None:
    batch, options = arrays(folder / "dpo_batch.npz"), dict(DPO_CASES[case])
    alpha = options.pop("ld_alpha", 1.0)
    mask = batch["completion_mask"].float()
    lengths = mask.sum(-1)
    others = torch.cat([lengths[4:], lengths[:4]])
    policy = llama(folder, "policy")

    def answers(model: Transformer) -> Tensor:
        return o.length_discounted(sequence_logprobs(model, batch["input_ids"], mask), mask, others, alpha)

    with torch.no_grad():
        reference = answers(llama(folder, "ref"))
    chosen, rejected = answers(policy).view(2, 4)
    loss = o.dpo_loss(
        chosen, rejected, *reference.view(2, 4), chosen_lengths_P=lengths[:4], rejected_lengths_P=lengths[4:], **options
    )
    agrees(policy, loss, results["dpo"][case])
    if case == 'sigmoid|{"beta": 0.1}':
        for name, expected in arrays(folder / "dpo_sigmoid_grads.npz").items():
            torch.testing.assert_close(policy.get_parameter(name).grad, expected, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("case", ["plain", "margin", "center_rewards_coefficient=0.01"])
def test_reward(folder: Path, results: dict[str, Any], case: str) -> None:
    batch, head = arrays(folder / "reward_batch.npz"), arrays(folder / "reward_head.npz")["score_weight"]
    head.requires_grad_()
    model = llama(folder, "policy")
    last = batch["attention_mask"].sum(-1) - 1
    hidden = model.hidden(batch["input_ids"])[torch.arange(len(last)), last]
    chosen, rejected = (hidden @ head[0]).view(2, 4)
    loss = o.reward_loss(
        chosen,
        rejected,
        margin_P=batch["margin"] if case == "margin" else None,
        centre=0.01 if case.startswith("center") else 0.0,
    )
    agrees(model, loss, results["reward"][case], [head])


GRPO_CASES: dict[str, dict[str, Any]] = {
    "grpo|beta=0": {"normaliser": "sequence"},
    "dapo|beta=0|eps_high=.28": {"clip_high": 0.28},
    "cispo|beta=0|eps_high=5": {"surrogate": "cispo", "clip_high": 5.0},
    "gspo(grpo+sequence)|beta=0|eps=.2": {"ratio": "sequence", "normaliser": "sequence"},
    "luspo|sequence|beta=0": {"ratio": "sequence", "normaliser": "sequence_sum"},
    "grpo|delta=1.5|beta=0": {"ceiling": 1.5, "normaliser": "sequence"},
    "grpo|beta=0.04|kl_is_corrected=False": {"normaliser": "sequence", "beta": 0.04},
    "grpo|beta=0.04|kl_is_corrected=True": {"normaliser": "sequence", "beta": 0.04, "corrected_kl": True},
    "bnpo|beta=0.04|kl_is_corrected=False": {"beta": 0.04},
    "dapo|beta=0.04|kl_is_corrected=True": {"beta": 0.04, "corrected_kl": True},
    "dr_grpo|beta=0.04|kl_is_corrected=False": {"normaliser": "constant", "beta": 0.04},
    "grpo-onpolicy(no old)|beta=0.04|kl_is_corrected=False": {"normaliser": "sequence", "beta": 0.04, "old": "own"},
    "grpo-onpolicy(no old)|beta=0.04|kl_is_corrected=True": {
        "normaliser": "sequence", "beta": 0.04, "old": "own", "corrected_kl": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("case", GRPO_CASES)
def test_policy(folder: Path, results: dict[str, Any], case: str) -> None:
    batch, options = arrays(folder / "grpo_batch.npz"), dict(GRPO_CASES[case])
    model = llama(folder, "policy")
    tokens = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    prompt = batch["prompt_ids"].shape[1]
    logits = model(tokens, attention_mask=attention)[:, prompt - 1 : -1]
    logprobs = logits.log_softmax(-1).gather(-1, batch["completion_ids"][..., None])[..., 0]
    mask = batch["completion_mask"].float()
    torch.testing.assert_close(logprobs * mask, batch["policy_per_token_logps"] * mask, atol=2e-5, rtol=1e-5)
    old = logprobs.detach() if options.pop("old", None) else batch["old_per_token_logps"]
    loss = o.policy_loss(logprobs, old, batch["advantages"], mask, reference_BT=batch["ref_per_token_logps"], **options)
    agrees(model, loss, results["grpo"][case])
