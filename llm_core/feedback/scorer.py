"""The reward model: a Transformer whose last token's hidden vector is read by one linear head.

Head and start as in lm-human-preference-details and summarize_from_feedback_details: weights N(0, 1 / (width + 1)), and
after training a gain and a bias that give the chat model's answers mean 0 and deviation 1, so that a KL weight means
the same for every reward model. Its directory is a model directory with `head.safetensors` beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm_core.contract import BadInput
from llm_core.data.bpe import Tokenizer
from llm_core.model.checkpoint import load_model, save_model
from llm_core.model.transformer import Transformer

HEAD = "head.safetensors"


class RewardModel(nn.Module):
    """Scores sequences: gain * (hidden of the last token . weight) + bias."""

    gain: Tensor
    bias: Tensor

    def __init__(self, backbone: Transformer, seed: int = 0) -> None:
        super().__init__()
        self.backbone = backbone
        if not backbone.config.tied:
            backbone.lm_head.requires_grad_(False)  # unused here: decay would wear it away
        width = backbone.config.width
        draw = torch.randn(width, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(draw / (width + 1) ** 0.5)
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("bias", torch.zeros(()))

    def forward(self, tokens_BT: Tensor, last_B: Tensor) -> Tensor:
        """Scores (B,) of sequences padded on the right, whose last token stands at index `last_B`."""
        hidden_BTD = self.backbone.hidden(tokens_BT)
        last_BD = hidden_BTD[torch.arange(len(last_B), device=last_B.device), last_B]
        scores_B: Tensor = self.gain * (last_BD @ self.weight) + self.bias
        return scores_B

    @torch.no_grad()
    def score(self, sequences: Sequence[Sequence[int]], *, batch: int = 256) -> list[float]:
        """Scores of token sequences (prompt, answer, closing token), in the order given."""
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        scores = [0.0] * len(sequences)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            lengths = [len(sequences[i]) for i in rows]
            tokens_BT = torch.zeros(len(rows), max(lengths), dtype=torch.long)
            for b, i in enumerate(rows):
                tokens_BT[b, : lengths[b]] = torch.tensor(sequences[i])
            device = self.weight.device
            values = self(tokens_BT.to(device), torch.tensor(lengths, device=device) - 1)
            for i, value in zip(rows, values.tolist(), strict=True):
                scores[i] = value
        return scores

    @torch.no_grad()
    def normalise(self, sequences: Sequence[Sequence[int]]) -> tuple[float, float]:
        """Set gain and bias so that these sequences score mean 0, deviation 1; returns mean and deviation before.

        Raises `BadInput` if all score the same: such a reward says nothing.
        """
        self.gain.fill_(1.0)
        self.bias.zero_()
        scores = torch.tensor(self.score(sequences), dtype=torch.float64)
        mean, deviation = float(scores.mean()), float(scores.std(correction=0))
        if not deviation > 1e-6:
            raise BadInput(
                f"reward: the {len(sequences)} answers of the votes all score {mean:.3g}; nothing was learned"
            )
        self.gain.fill_(1 / deviation)
        self.bias.fill_(-mean / deviation)
        return mean, deviation


def save_reward_model(model: RewardModel, folder: Path, tokenizer: Tokenizer, card: str) -> None:
    """Write backbone, tokenizer, card and head into `folder`."""
    save_model(model.backbone, folder, tokenizer, card)
    head = {"weight": model.weight, "gain": model.gain, "bias": model.bias}
    save_file({name: value.detach().cpu().clone() for name, value in sorted(head.items())}, folder / HEAD)


def load_reward_model(folder: Path) -> RewardModel:
    """The reward model in `folder`, in eval mode. Raises `BadInput` if there is none."""
    if not (folder / HEAD).is_file():
        raise BadInput(f"{folder / HEAD}: missing; this is no reward model")
    model = RewardModel(load_model(folder))
    model.load_state_dict(load_file(folder / HEAD), strict=False)
    return model.eval()
