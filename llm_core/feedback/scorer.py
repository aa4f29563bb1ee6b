"""The reward model: a Transformer whose last token's hidden vector is read by linear heads.

Head and start as in lm-human-preference-details and summarize_from_feedback_details: weights N(0, 1 / (width + 1)), and
after training a gain and a bias that give the chat model's answers mean 0 and deviation 1, so that a KL weight means
the same for every reward model. Several heads (helpful, harmless) learn from different pairs on one backbone; the score
is their weighted sum, again of deviation 1. A head may also read how likely the backbone finds the answer, scaled by a
learned factor: what a small language model knows of right and wrong lies there, and its last vector tells little of it.

Its directory is a model directory with `head.safetensors` and `reward.json` (names of the heads, weights) beside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm_core.contract import BadInput
from llm_core.data.bpe import Tokenizer
from llm_core.model.checkpoint import load_model, save_model
from llm_core.model.transformer import Transformer

HEAD, FACTS = "head.safetensors", "reward.json"
LIKELIHOOD_START = 0.3
"""What a nat of the answer's likelihood adds to a score before training."""


class RewardModel(nn.Module):
    """Scores sequences: the heads' gain * (hidden of the last token . weight [+ factor * log p(answer)]) + bias, mixed.

    `opening`: the tokens that open an answer; given, the heads read the likelihood of what follows the first of them.
    """

    gain_H: Tensor
    bias_H: Tensor
    mix_H: Tensor
    covariance_HH: Tensor

    def __init__(
        self, backbone: Transformer, seed: int = 0, heads: Sequence[str] = ("votes",), opening: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.backbone, self.heads, self.opening = backbone, tuple(heads), tuple(opening)
        if not backbone.config.tied and not opening:
            backbone.lm_head.requires_grad_(False)  # unused here: decay would wear it away
        width, count = backbone.config.width, len(self.heads)
        draw = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
        self.weight_HD = nn.Parameter(draw / (width + 1) ** 0.5)
        self.factor_H = nn.Parameter(torch.full((count,), LIKELIHOOD_START), requires_grad=bool(opening))
        self.register_buffer("gain_H", torch.ones(count))
        self.register_buffer("bias_H", torch.zeros(count))
        self.register_buffer("mix_H", torch.full((count,), 1 / count))
        self.register_buffer("covariance_HH", torch.eye(count))

    @property
    def weight(self) -> Tensor:
        """What one linear head with the mixed score would have as its weight [D], without the likelihood."""
        return (self.mix_H * self.gain_H) @ self.weight_HD

    @property
    def gain(self) -> Tensor:
        """The gain that goes with `weight`: 1, as a tensor."""
        return torch.ones((), device=self.weight_HD.device)

    @property
    def bias(self) -> Tensor:
        """The bias of the mixed score."""
        return self.mix_H @ self.bias_H

    def head_scores(self, tokens_BT: Tensor, last_B: Tensor) -> Tensor:
        """Each head's scores [B, H] of sequences padded on the right, whose last token stands at index `last_B`."""
        hidden_BTD = self.backbone.hidden(tokens_BT)
        last_BD = hidden_BTD[torch.arange(len(last_B), device=last_B.device), last_B]
        raw_BH = last_BD @ self.weight_HD.t()
        if self.opening:
            raw_BH = raw_BH + self._likelihood(hidden_BTD, tokens_BT, last_B)[:, None] * self.factor_H
        return self.gain_H * raw_BH + self.bias_H

    def forward(self, tokens_BT: Tensor, last_B: Tensor) -> Tensor:
        """Scores [B], the heads mixed; the arguments are those of `head_scores`."""
        return self.head_scores(tokens_BT, last_B) @ self.mix_H

    def _likelihood(self, hidden_BTD: Tensor, tokens_BT: Tensor, last_B: Tensor) -> Tensor:
        """Log-probability [B] of everything after the first opening of an answer, up to the last token.

        From the first, not the last: a policy that writes another opening must not hide what stands before it.
        """
        count = len(self.opening)
        wanted = torch.tensor(self.opening, device=tokens_BT.device)
        found_BT = (tokens_BT.unfold(1, count, 1) == wanted).all(dim=2)
        begin_B = torch.where(found_BT.any(dim=1), found_BT.int().argmax(dim=1) + count, 1)
        place_T = torch.arange(1, tokens_BT.shape[1], device=tokens_BT.device)
        read_BT = (place_T >= begin_B[:, None]) & (place_T <= last_B[:, None])
        logits = self.backbone.logits(hidden_BTD[:, :-1][read_BT]).float()
        scored = logits.gather(1, tokens_BT[:, 1:][read_BT][:, None])[:, 0] - logits.logsumexp(dim=1)
        spread_BT = torch.zeros_like(read_BT, dtype=scored.dtype).masked_scatter(read_BT, scored)
        return spread_BT.sum(dim=1)

    @torch.no_grad()
    def score_heads(self, sequences: Sequence[Sequence[int]], *, batch: int = 256) -> Tensor:
        """Each head's scores [N, H] of token sequences (prompt, answer, closing token), in the order given."""
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        device = self.weight_HD.device
        scores_NH = torch.zeros(len(sequences), len(self.heads))
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            lengths = [len(sequences[i]) for i in rows]
            tokens_BT = torch.zeros(len(rows), max(lengths), dtype=torch.long)
            for b, i in enumerate(rows):
                tokens_BT[b, : lengths[b]] = torch.tensor(sequences[i])
            last_B = torch.tensor(lengths, device=device) - 1
            scores_NH[torch.tensor(rows)] = self.head_scores(tokens_BT.to(device), last_B).float().cpu()
        return scores_NH

    def score(self, sequences: Sequence[Sequence[int]], *, batch: int = 256) -> list[float]:
        """The mixed scores of token sequences (prompt, answer, closing token), in the order given."""
        mixed: list[float] = (self.score_heads(sequences, batch=batch) @ self.mix_H.float().cpu()).tolist()
        return mixed

    @torch.no_grad()
    def normalise(self, sequences: Sequence[Sequence[int]], weights: Mapping[str, float] | None = None) -> list[float]:
        """Set gains and biases so that these sequences score mean 0 and deviation 1 under each head and mixed.

        Returns mean and deviation of each head before, one after the other. Raises `BadInput` if a head gives no
        number, or the same one to all: such a reward says nothing.
        """
        self.gain_H.fill_(1.0)
        self.bias_H.zero_()
        scores_NH = self.score_heads(sequences).double()
        mean_H, deviation_H = scores_NH.mean(0), scores_NH.std(0, correction=0)
        for name, mean, deviation in zip(self.heads, mean_H.tolist(), deviation_H.tolist(), strict=True):
            if not deviation > 1e-6:
                what = f"all score {mean:.3g}" if mean == mean else "score no number"
                raise BadInput(f"reward.heads.{name}: the {len(sequences)} answers {what}; nothing was learned")
        self.gain_H.copy_(1 / deviation_H)
        self.bias_H.copy_(-mean_H / deviation_H)
        normed_NH = (scores_NH - mean_H) / deviation_H
        self.covariance_HH.copy_(normed_NH.t() @ normed_NH / len(sequences))
        self.mix(weights or dict.fromkeys(self.heads, 1.0))
        return torch.stack([mean_H, deviation_H], dim=1).flatten().tolist()

    @torch.no_grad()
    def mix(self, weights: Mapping[str, float]) -> None:
        """Weigh the heads anew, the mixed score again of deviation 1. Heads that are not named get 0.

        Raises `BadInput` for an unknown head, or if all weights are 0.
        """
        if unknown := sorted(set(weights) - set(self.heads)):
            raise BadInput(f"reward.heads: no head {unknown[0]!r}; there are {', '.join(self.heads)}")
        mix_H = torch.tensor([weights.get(name, 0.0) for name in self.heads], dtype=torch.float64)
        deviation = float((mix_H @ self.covariance_HH.double().cpu() @ mix_H).clamp_min(0).sqrt())
        if not deviation > 1e-6:
            raise BadInput("reward.heads: the weights cancel each other out; at least one has to be above 0")
        self.mix_H.copy_(mix_H / deviation)


TENSORS = ("weight_HD", "factor_H", "gain_H", "bias_H", "mix_H", "covariance_HH")


def save_reward_model(model: RewardModel, folder: Path, tokenizer: Tokenizer, card: str) -> None:
    """Write backbone, tokenizer, card, heads and their facts into `folder`."""
    save_model(model.backbone, folder, tokenizer, card)
    state = {name: getattr(model, name).detach().cpu().clone() for name in TENSORS}
    save_file(state, folder / HEAD)
    facts = {"heads": list(model.heads), "opening": list(model.opening)}
    (folder / FACTS).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_reward_model(folder: Path) -> RewardModel:
    """The reward model in `folder`, in eval mode. Raises `BadInput` if there is none."""
    for name in (HEAD, FACTS):
        if not (folder / name).is_file():
            raise BadInput(f"{folder / name}: missing; this is no reward model, or an older one: run reward again")
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    model = RewardModel(load_model(folder), heads=facts["heads"], opening=facts["opening"])
    model.load_state_dict(load_file(folder / HEAD), strict=False)
    return model.eval()
