"""Settings of the stage align: how the votes change the chat model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llm_core.contract import Config


class AlignConfig(Config):
    """Tune the chat model on pairs of answers, held near the chat model by `beta`."""

    method: Literal["dpo"] = "dpo"
    """How the preferences are used: direct preference optimisation on the pairs."""
    loss: Literal["sigmoid", "hinge", "ipo", "robust"] = "sigmoid"
    """Form of the pairwise loss."""
    pool: Literal["votes", "dataset", "both"] = "votes"
    """Pairs it learns from: the votes (people's, else the simulated rater's), the corpus's preference data, or both."""
    beta: float = Field(default=0.1, gt=0.0, le=10.0)
    """Strength of the pull towards the chat model (inverse temperature of the implicit reward)."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Share of the votes assumed to be wrong; needed by the robust loss, optional in the sigmoid one."""
    sft_weight: float = Field(default=1.0, ge=0.0, le=10.0)
    """Weight of the chosen answers' own cross-entropy per token, added to the loss; without it DPO makes the preferred
    answers less likely too."""
    steps: int = Field(default=200, ge=1)
    """Optimizer steps."""
    batch_pairs: int = Field(default=16, ge=1)
    """Pairs per step."""
    learning_rate: float = Field(default=5e-4, gt=0.0, le=1.0)
    """Peak learning rate (AdamW)."""
    weight_decay: float = Field(default=0.0, ge=0.0, le=1.0)
    """Weight decay of the matrices."""
    warmup_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the steps in which the learning rate rises; it then falls to a tenth by a cosine."""
    evaluate_every: int = Field(default=50, ge=1)
    """Steps between looks at the held-out pairs."""
    kl_prompts: int = Field(default=200, ge=1)
    """Prompts answered before and after tuning, to measure the KL from chat and the reward model's score."""
    max_new_tokens: int = Field(default=24, ge=1, le=4096)
    """Length limit of such an answer, in tokens."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of torch; 0: one for each core."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; `auto` takes a GPU if there is one."""
    seed: int = Field(default=0, ge=0)
    """Seed of the order of pairs and of the sampled answers."""
