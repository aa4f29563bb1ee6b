"""Settings of the stage align: how the feedback changes the chat model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from llm_core.contract import Config
from llm_core.settings.sft import LoraSettings


class OnlineSettings(Config):
    """What `grpo` and `ppo` share: rollouts of answers sampled from the current policy, and what they are worth."""

    reward: Literal["model", "checked", "mix"] = "model"
    """What an answer is worth: the reward model's score, whether the prompt's check accepts it (1 or 0), or both."""
    checked_weight: float = Field(default=0.5, ge=0.0, le=1.0)
    """Weight of the checked answer in the reward `mix`, 0 to 1; the model's score has the rest."""
    check: Literal["python", "exact", "number", "contains"] = "python"
    """How an answer is checked: it is the value of the prompt's Python expression, it is the expected text, its last
    number is the expected one, or the expected text is in it."""
    rollouts: int = Field(default=100, ge=1, le=10_000_000)
    """Rollouts: each samples answers of the current policy and takes `epochs` x `minibatches` optimizer steps."""
    prompts: int = Field(default=16, ge=1, le=65536)
    """Prompts of a rollout."""
    samples: int = Field(default=8, ge=1, le=1024)
    """Answers to each of them; `grpo` compares these with each other and needs 2."""
    epochs: int = Field(default=1, ge=1, le=64)
    """Times that a rollout's answers are gone through."""
    minibatches: int = Field(default=1, ge=1, le=65536)
    """Optimizer steps an epoch; each takes its part of the answers, in a new order."""
    passes: int = Field(default=1, ge=1, le=4096)
    """Forward passes that a step is cut into, to save memory."""
    temperature: float = Field(default=1.0, gt=0.0, le=5.0)
    """Sampling temperature; the policy's and the reference's log-probabilities are taken at the same one."""
    learning_rate: float = Field(default=2e-4, gt=0.0, le=1.0)
    """Peak learning rate (AdamW)."""
    warmup_share: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Share of the steps in which the learning rate rises; it then falls to a tenth by a cosine."""
    kl_weight: float = Field(default=0.05, ge=0.0, le=100.0)
    """Weight of the KL divergence from the chat model, per nat; 0 lets the policy go wherever the reward is high."""
    kl_target: float | None = Field(default=None, gt=0.0, le=10_000.0)
    """Nats per answer that the KL weight is steered to, step by step. Empty: the weight stays as it is."""
    kl_horizon: int = Field(default=10_000, ge=1)
    """Answers over which the weight follows the error, which counts for at most 20%; smaller is faster."""
    missing_end_penalty: float = Field(default=1.0, ge=0.0, le=100.0)
    """Subtracted from the reward of an answer that was cut by the length limit."""
    evaluate_every: int = Field(default=25, ge=1)
    """Rollouts between looks at answers to held-out prompts."""
    evaluate_prompts: int = Field(default=64, ge=1)
    """Held-out prompts that such a look takes, at most."""


class GrpoSettings(Config):
    """The group-relative family: an answer's advantage is its reward beside those of other answers to the prompt."""

    variant: Literal["grpo", "dapo", "dr_grpo", "bnpo", "cispo", "gspo", "luspo", "reinforce"] = "grpo"
    """Which ratio, clipping, normaliser and scale of advantages; see the table in docs/feedback.md."""
    clip_low: float | None = Field(default=None, ge=0.0, le=1.0)
    """Lower clip of the ratio, as 1 - this. Empty: the variant's own."""
    clip_high: float | None = Field(default=None, ge=0.0, le=100.0)
    """Upper clip of the ratio, as 1 + this (cispo: this itself). Empty: the variant's own."""
    scale: Literal["variant", "group", "batch", "none"] = "variant"
    """What advantages are divided by: the deviation within the prompt's answers, within the batch, or nothing."""
    kl: Literal["k3", "k3_corrected", "reward"] = "k3"
    """How the KL enters: in the loss (the k3 estimator), there times the ratio, or subtracted from the reward."""
    drop_flat_groups: bool = False
    """Leave prompts whose answers are all worth the same out of the loss (and of its token count)."""
    drop_cut_answers: bool = False
    """Leave answers that were cut by the length limit out of the loss."""


class PpoSettings(Config):
    """Proximal policy optimisation with a value network that starts as a copy of the reward model."""

    clip: float = Field(default=0.2, gt=0.0, le=1.0)
    """Clip of the ratio, both ways."""
    value_clip: float = Field(default=0.2, gt=0.0, le=100.0)
    """How far a value may move from the rollout's before its loss is clipped."""
    value_weight: float = Field(default=0.1, ge=0.0, le=100.0)
    """Weight of the value loss beside the policy's."""
    value_learning_rate: float = Field(default=1e-3, gt=0.0, le=1.0)
    """Peak learning rate of the value network."""
    gamma: float = Field(default=1.0, gt=0.0, le=1.0)
    """Discount per token."""
    lam: float = Field(default=0.95, ge=0.0, le=1.0)
    """Lambda of the advantages' estimation: 0 trusts the values, 1 the rewards."""
    whiten_rewards: bool = False
    """Divide the token rewards by their deviation."""
    adam_epsilon: float = Field(default=1e-5, gt=0.0, le=1.0)
    """Epsilon of Adam."""


class AlignConfig(Config):
    """Tune the chat model on pairs of answers (dpo) or on its own sampled answers (grpo, ppo), held near itself."""

    method: Literal["dpo", "grpo", "ppo"] = "dpo"
    """Direct preference optimisation on the pairs, or reinforcement learning on the prompts of the pairs."""
    pool: Literal["votes", "dataset", "both"] = "votes"
    """Pairs it learns from: the votes (people's, else the simulated rater's), the corpus's preference data, or both."""
    loss: Literal["sigmoid", "sigmoid_norm", "hinge", "ipo", "robust"] = "sigmoid"
    """dpo: form of the pairwise loss."""
    beta: float = Field(default=0.1, gt=0.0, le=10.0)
    """dpo: strength of the pull towards the chat model (inverse temperature of the implicit reward)."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """dpo: share of the votes assumed to be wrong; needed by the robust loss, optional in the sigmoid one."""
    ld_alpha: float = Field(default=1.0, ge=0.0, le=1.0)
    """dpo: weight of an answer's tokens beyond the other answer's length; below 1 length counts for less."""
    sft_weight: float = Field(default=1.0, ge=0.0, le=10.0)
    """dpo: weight of the chosen answers' own cross-entropy per token, added to the loss; without it DPO makes the
    preferred answers less likely too."""
    steps: int = Field(default=200, ge=1)
    """dpo: optimizer steps."""
    batch_pairs: int = Field(default=16, ge=1)
    """dpo: pairs per step."""
    learning_rate: float = Field(default=5e-4, gt=0.0, le=1.0)
    """dpo: peak learning rate (AdamW)."""
    warmup_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    """dpo: share of the steps in which the learning rate rises; it then falls to a tenth by a cosine."""
    evaluate_every: int = Field(default=50, ge=1)
    """dpo: steps between looks at the held-out pairs."""
    online: OnlineSettings = OnlineSettings()
    """grpo and ppo: what is sampled and what it is worth."""
    grpo: GrpoSettings = GrpoSettings()
    """grpo: the member of the family."""
    ppo: PpoSettings = PpoSettings()
    """ppo: clipping and the value network."""
    lora: LoraSettings | None = None
    """Train low-rank additions; the reference is then the same weights without them, so no second model is kept.
    Empty: train all weights."""
    weight_decay: float = Field(default=0.0, ge=0.0, le=1.0)
    """Weight decay of the matrices."""
    kl_prompts: int = Field(default=200, ge=1)
    """Prompts answered before and after tuning, to measure the KL from chat and the reward model's score."""
    max_new_tokens: int = Field(default=24, ge=1, le=4096)
    """Length limit of a sampled answer, in tokens."""
    save_every_seconds: float = Field(default=30.0, gt=0)
    """Seconds between resume points; one is also written before every look at held-out data."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of torch; 0: one for each core."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; `auto` takes a GPU if there is one."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the order of pairs and prompts, and of the sampled answers."""

    @model_validator(mode="after")
    def _fits(self) -> AlignConfig:
        online, rows = self.online, self.online.prompts * self.online.samples
        if online.minibatches * online.passes > rows:
            raise ValueError(f"online: {rows} answers cannot be cut into minibatches x passes = "
                             f"{online.minibatches * online.passes} parts")  # fmt: skip
        if self.method == "grpo" and online.samples < 2:
            raise ValueError("online.samples: grpo compares answers to one prompt and needs 2 or more")
        return self
