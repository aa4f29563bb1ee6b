"""Settings of the stage evaluate: what the models are asked, and how sure the answers are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llm_core.contract import Config


class EvaluateConfig(Config):
    """Bits per byte, multiple choice, cloze and checked problems for base, chat and aligned."""

    problems: int = Field(default=800, ge=1)
    """Held-out problems answered by chat and aligned, greedily and by sampling, at most."""
    answers: int = Field(default=4, ge=1, le=64)
    """Sampled answers to each problem; their mean is the problem's judged score."""
    base_problems: int = Field(default=200, ge=0)
    """Of these, the first so many are answered greedily by base too, for comparison."""
    choices: int = Field(default=300, ge=0)
    """Multiple-choice questions on held-out docstrings, at most."""
    cloze: int = Field(default=200, ge=0)
    """Sentences of held-out pages whose last word is to be found, at most."""
    validation_tokens: int = Field(default=100_000, ge=1)
    """Tokens of held-out pages on which bits per byte are measured, at most; spread evenly over the sources."""
    temperature: float = Field(default=1.0, gt=0.0, le=5.0)
    """Temperature of sampled answers."""
    max_new_tokens: int = Field(default=24, ge=1, le=4096)
    """Length limit of an answer, in tokens."""
    bootstrap: int = Field(default=2000, ge=100)
    """Resamples behind each 95% interval."""
    samples: int = Field(default=6, ge=0)
    """Text samples per model shown in the report; the same prompts for every model."""
    sample_tokens: int = Field(default=80, ge=1)
    """Length of a text sample that continues a page, in tokens."""
    data: str = ""
    """Folder with evaluation sets (docs/evaluation.md names the files); empty: `heldout`. Only `heldout` is watched:
    after a change elsewhere run `groundup run --force evaluate`."""
    tasks: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness (extra `harness`): `local_*` for those whose files are in the data folder,
    `generated_choice` and `generated_cloze` for the sets made here, or any of the harness's own by name."""
    task_models: tuple[Literal["base", "chat", "aligned"], ...] = ("base", "aligned")
    """Models that do these tasks."""
    task_examples: int = Field(default=1000, ge=0)
    """Documents of each task, evenly spread over it; 0: all."""
    task_shots: int | None = Field(default=None, ge=0, le=64)
    """Worked examples in each prompt; empty: the task's own number."""
    task_seconds: float = Field(default=3600.0, gt=0.0)
    """Processor time that a task, or a safety check, may take for one model, in seconds; by the clock six times as
    much. One that takes longer is ended and reported, and the others go on."""
    safety: tuple[Literal["refusal", "toxicity", "privacy"], ...] = ("refusal", "toxicity", "privacy")
    """Safety checks to make."""
    safety_prompts: int = Field(default=100, ge=1)
    """Prompts of a safety check, evenly spread over its set, at most."""
    safety_samples: int = Field(default=4, ge=1, le=64)
    """Continuations of each opening, of which the most offensive counts."""
    safety_tokens: int = Field(default=24, ge=1, le=1024)
    """Length of an answer or continuation in a safety check, in tokens."""
    privacy_documents: int = Field(default=200, ge=1)
    """Training documents, and as many held-out ones, whose continuation the model might know word for word."""
    privacy_prompt: int = Field(default=32, ge=1, le=4096)
    """Tokens of a document that are shown, at most half the model's context."""
    privacy_tokens: int = Field(default=16, ge=1, le=4096)
    """Tokens that must follow word for word to count as given away, at most half the model's context."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of torch; 0: one for each core."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; `auto` takes a GPU if there is one."""
    seed: int = Field(default=0, ge=0)
    """Seed of sampling, of the questions' distractors and of the bootstrap."""
