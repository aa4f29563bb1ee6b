"""Section `tokenize` of params.yaml: from text to token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from llm_core.contract import Config


class TokenizeConfig(Config):
    """Which tokenizer, and how it is trained."""

    tokenizer: Literal["own", "gpt2"] = "own"
    """own: a byte-level BPE trained on the corpus; gpt2: the 50,257 tokens of GPT-2."""
    vocab_size: int = Field(default=2048, ge=300, le=200_000)
    """Tokens of the own tokenizer with its special tokens, 300 to 200,000."""
    gpt2_files: Path | None = None
    """Folder with GPT-2's vocab.json and merges.txt (or gpt2_vocab.json and gpt2_merges.txt); blank fetches them."""
    sample_bytes: int = Field(default=200_000_000, ge=1_000)
    """UTF-8 bytes of text that the own tokenizer is trained on at most, 1,000 or more."""
    workers: int = Field(default=0, ge=0, le=1024)
    """Worker processes, up to 1024; 0 takes all cores. The shards are the same for any number."""
