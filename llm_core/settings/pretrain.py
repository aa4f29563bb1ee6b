"""Settings of the stage pretrain, and the sections that other training stages share with it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from llm_core.contract import Config
from llm_core.model.config import ModelConfig, PresetName
from llm_core.scaling.laws import EPOCH, Law


class ModelSettings(Config):
    """The model's shape. A field left empty takes the preset's value."""

    preset: PresetName = "qwen3"
    """Architecture and the sizes it starts from: an architecture's name (seed, gpt2, llama, qwen3, speedrun) or a size
    to train at (tiny, seed-30m, gpt2-124m, 350m, 1b)."""
    layers: int | None = Field(default=None, ge=1, le=200)
    """Transformer blocks, 1 to 200."""
    heads: int | None = Field(default=None, ge=1, le=256)
    """Attention heads, 1 to 256; must divide the width."""
    kv_heads: int | None = Field(default=None, ge=1, le=256)
    """Key/value heads, 1 to 256; must divide the heads. Empty: as many as heads."""
    width: int | None = Field(default=None, ge=2, le=32768)
    """Width of the residual stream, 2 to 32768."""
    hidden: int | None = Field(default=None, ge=1, le=131072)
    """Inner width of the feed-forward, 1 to 131072. Empty: 4 width, or 8/3 width where it is gated (llama, qwen3)."""
    context: int | None = Field(default=None, ge=2, le=131072)
    """Longest sequence in tokens, 2 to 131072."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Share of activations zeroed in training, 0 up to 1. Empty: 0.1 in seed and gpt2, else 0."""
    tied: bool | None = None
    """Whether the output head is the embedding. Empty: only in gpt2."""
    attention_bias: bool | None = None
    """Biases on the attention's projections. Empty: only in seed and gpt2."""
    rope_base: float | None = Field(default=None, gt=1)
    """Base of the rotary angles, above 1. Empty: 10000."""
    initial_std: float | None = Field(default=None, gt=0, le=1)
    """Standard deviation of the initial weights, above 0 up to 1. Empty: 0.02, or width ** -0.5 in speedrun."""
    embedding_std: float | None = Field(default=None, gt=0, le=10)
    """The same of the token embedding, above 0 up to 10. Empty: 0.2 in llama and qwen3 with a head of its own, 0.8 in
    speedrun, else `initial_std`."""
    softcap: float | None = Field(default=None, ge=0, le=1000)
    """Bound that speedrun bends its logits to, 0 (none) to 1000. Empty: 15; the other architectures have none."""

    @model_validator(mode="after")
    def _fits(self) -> ModelSettings:
        self.build(vocab_size=None)
        return self

    def build(self, vocab_size: int | None) -> ModelConfig:
        """The model's config for a tokenizer of `vocab_size` (None: the preset's)."""
        return ModelConfig.preset(self.preset, vocab_size=vocab_size, **self.model_dump(exclude={"preset"}))


class OptimizerSettings(Config):
    """What turns gradients into steps."""

    name: Literal["muon", "adamw"] = "muon"
    """`muon`: Muon on the blocks' matrices and AdamW on the rest; `adamw`: AdamW on everything."""
    learning_rate: float = Field(default=0.006, gt=0, le=1)
    """AdamW's base learning rate, above 0 up to 1."""
    embedding_learning_rate: float | None = Field(default=0.1, gt=0, le=1)
    """AdamW's base learning rate of the token embedding, above 0 up to 1. Empty: `learning_rate`."""
    matrix_learning_rate: float = Field(default=0.016, gt=0, le=1)
    """Muon's base learning rate, above 0 up to 1."""
    weight_decay: float = Field(default=0.03, ge=0, le=10)
    """Decoupled weight decay of AdamW, on matrices only, 0 to 10."""
    matrix_weight_decay: float = Field(default=0.2, ge=0, le=10)
    """Decoupled weight decay of Muon, 0 to 10."""
    beta1: float = Field(default=0.8, ge=0, lt=1)
    """AdamW's decay of the mean gradient, 0 up to 1."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's decay of the mean squared gradient, 0 up to 1."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Muon's Nesterov momentum, 0 up to 1."""
    newton_schulz_steps: int = Field(default=3, ge=1, le=20)
    """Steps that make Muon's update orthogonal, 1 to 20. 5 is usual; in a small model 3 cost less than they lose."""


class ScheduleSettings(Config):
    """How the learning rate moves over the steps, as a factor on the base rates."""

    name: Literal["wsd", "cosine"] = "wsd"
    """`wsd`: warm up, stay, then decay linearly; `cosine`: warm up, then half a cosine."""
    warmup: float = Field(default=0.02, ge=0, le=1)
    """Share of the steps over which the factor rises linearly to 1, 0 to 1."""
    decay: float = Field(default=0.6, ge=0, le=1)
    """Share of the steps, at the end, over which `wsd` falls, 0 to 1."""
    floor: float = Field(default=0.05, ge=0, le=1)
    """Factor that the fall ends at, 0 to 1."""


class LawSettings(Config):
    """A scaling law L(N, D) = E + A / N^alpha + B / D^beta in nats per token: what a run is expected to reach.

    The default is Chinchilla's, fitted on another corpus and far larger models, so it says little of a small one.
    """

    name: str = EPOCH.name
    """Where the law is from; a name that begins with `own` was fitted on runs on this corpus."""
    E: float = Field(default=EPOCH.E, ge=0)
    """Loss in nats per token that no model gets below, 0 or more."""
    A: float = Field(default=EPOCH.A, gt=0)
    """What a small model costs, above 0."""
    B: float = Field(default=EPOCH.B, gt=0)
    """What little data costs, above 0."""
    alpha: float = Field(default=EPOCH.alpha, gt=0, le=10)
    """How fast the cost of size falls, above 0 up to 10."""
    beta: float = Field(default=EPOCH.beta, gt=0, le=10)
    """How fast the cost of data falls, above 0 up to 10."""

    def build(self) -> Law:
        """The law."""
        return Law(**self.model_dump())


class LoopSettings(Config):
    """How a training loop uses the machine, and what it does about trouble; shared by pretrain and sft."""

    how: ClassVar[frozenset[str]] = Config.how | {
        "ranks", "nodes", "restarts", "hang_seconds", "parallel", "activation_checkpointing", "compile", "keep_last",
        "save_every_seconds",
    }  # fmt: skip

    ranks: int = Field(default=1, ge=0, le=1024)
    """Processes on each machine that train together; `passes` must be a multiple of all. 0: one for each GPU."""
    nodes: int = Field(default=1, ge=1, le=4096)
    """Machines that train together, 1 to 4096. More than one meet at GROUNDUP_RENDEZVOUS, HOST:PORT of the first."""
    restarts: int = Field(default=3, ge=0, le=100)
    """How often several ranks begin again from the last resume point when one of them was lost, 0 to 100."""
    hang_seconds: float = Field(default=600.0, ge=0, le=86400)
    """Seconds that one of several ranks may stand still before the run ends and names it, 0 (for ever) to 86400."""
    parallel: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    """What several ranks hold: `ddp`: each the whole model; `fsdp`: each a part of weights, gradients and optimizer;
    `hsdp`: the ranks of a machine each a part, and every machine the same."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass: a fraction of their memory for a third more time."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether torch compiles the blocks; `auto`: on a GPU only."""
    spike_sigma: float = Field(default=6.0, ge=0, le=100)
    """Standard deviations above the mean of the last 128 losses from which a step is left out, 0 to 100; 0: never."""
    keep_last: int = Field(default=2, ge=1, le=1000)
    """Resume points that stay on disk, 1 to 1000."""


class PretrainConfig(LoopSettings):
    """Settings of pretrain: train the model on all pages."""

    seed: int = Field(default=1, ge=0, lt=2**31)
    """Seed of the initial weights, the order of the data and dropout."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of torch; 0: one for each core. Another number may change the last bits of the weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; `auto` takes a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the matrix products; `auto`: bf16 on a GPU (fp16 on one without bf16), fp32 on a CPU. fp16
    scales the loss, and leaves a step out whose gradients overflow."""
    model: ModelSettings = ModelSettings()
    """The model's shape."""
    steps: int = Field(default=1400, ge=1, le=10_000_000)
    """Optimizer steps."""
    batch_sequences: int = Field(default=10, ge=1, le=65536)
    """Sequences of `model.context` tokens in one step."""
    passes: int = Field(default=2, ge=1, le=4096)
    """Forward passes that a step is cut into, at most `batch_sequences`. On a CPU, without dropout, they run side by
    side on the cores; elsewhere one after the other, in less memory."""
    dialogue_share: float = Field(default=0.0, ge=0, le=0.9)
    """Share of the sequences that are cut from the training dialogues (questions and answers) instead of the pages,
    0 to 0.9. Above 0 the base model has seen the training dialogues' text; the held-out ones it never sees."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """What turns gradients into steps."""
    schedule: ScheduleSettings = ScheduleSettings()
    """How the learning rate moves."""
    clip: float = Field(default=1.0, gt=0)
    """Largest global norm of the gradients; above it they are scaled down."""
    z_loss: float = Field(default=0.0, ge=0, le=1)
    """Weight of the squared log-sum-exp of the logits in the training loss, 0 (none) to 1; PaLM took 0.0001."""
    evaluate_every: int = Field(default=400, ge=1)
    """Steps between evaluations on held-out pages."""
    evaluate_tokens: int = Field(default=10_000, ge=1)
    """Tokens of held-out pages that an evaluation in between looks at; the last one takes all."""
    keep_best: bool = False
    """Whether to end with the weights of the lowest held-out loss among the evaluations, instead of the last ones."""
    save_every_seconds: float = Field(default=30.0, gt=0)
    """Seconds between resume points."""
    law: LawSettings = LawSettings()
    """The law whose expected loss is told beside the actual one; it changes nothing in training. `groundup plan
    --apply` puts the law of your own ladder here."""
    sample_tokens: int = Field(default=60, ge=1, le=4096)
    """Longest generated sample in tokens."""
    sample_prompts: tuple[str, ...] = (
        "Return a list of",
        "The os module",
        "Raises ValueError if",
        "class Queue",
    )
    """Texts that the finished model continues, for people to read."""

    @model_validator(mode="after")
    def _cuts(self) -> PretrainConfig:
        if self.passes > self.batch_sequences:
            raise ValueError(f"passes: {self.passes} passes need at least as many batch_sequences")
        return self
