"""Section `tokenize` of params.yaml: from text to token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from llm_core.contract import Config
from llm_core.settings.cluster import ClusterSettings
from llm_core.settings.storage import StorageSettings

Weight = Annotated[float, Field(gt=0, le=1_000)]


class TokenizeConfig(Config):
    """Which tokenizer, how it is trained, and how often each source is read."""

    how: ClassVar[frozenset[str]] = Config.how | {"workers", "cluster", "storage"}

    tokenizer: Literal["own", "gpt2", "folder"] = "own"
    """own: a byte-level BPE trained on the corpus; gpt2: the 50,257 tokens of GPT-2; folder: one made before."""
    vocab_size: int = Field(default=2048, ge=300, le=200_000)
    """Tokens of the own tokenizer with its special tokens, 300 to 200,000."""
    digits: Literal["single", "runs"] = "single"
    """single: each digit is a token of the own tokenizer, so that numbers are cut alike everywhere; runs: as GPT-2."""
    sample_bytes: int = Field(default=200_000_000, ge=1_000)
    """UTF-8 bytes of text that the own tokenizer is trained on at most, 1,000 or more, chosen by the documents' ids."""
    weights: dict[str, Weight] = Field(default_factory=dict)
    """Times that the training documents of a source are read, above 0, at most 1,000; 2.5: twice, half of them again.

    Sources that are not named here have the weight that acquire gives them.
    """
    gpt2_files: Path | None = None
    """Folder with GPT-2's vocab.json and merges.txt (or gpt2_vocab.json and gpt2_merges.txt); blank fetches them.

    With an own tokenizer they serve the comparison in the report, and nothing is fetched for it.
    """
    gpt2_cache: Path | None = None
    """Folder where fetched files of GPT-2 are kept; blank takes TIKTOKEN_CACHE_DIR, else ~/.cache/groundup/tiktoken."""
    tokenizer_folder: Path | None = None
    """Folder with the tokenizer.json to use where `tokenizer` is folder, such as an older data/shards/tokenizer."""
    workers: int = Field(default=0, ge=0, le=1024)
    """Worker processes, up to 1024; 0 takes all cores. The shards are the same for any number."""
    cluster: ClusterSettings = ClusterSettings()
    """Where the workers are; left out, the section `cluster` of params.yaml says it."""
    storage: StorageSettings = StorageSettings()
    """Where the product's files lie; left out, the section `storage` of params.yaml says it."""

    @model_validator(mode="after")
    def _folder_is_named(self) -> TokenizeConfig:
        if (self.tokenizer == "folder") != (self.tokenizer_folder is not None):
            raise ValueError("tokenizer_folder is wanted where tokenizer is folder, and nowhere else")
        return self
