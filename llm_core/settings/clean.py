"""Section `clean` of params.yaml: from pages to documents worth reading."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from llm_core.contract import Config


class FilterSettings(Config):
    """Which quality filters a document must pass. The first rule that fails is its reason for being dropped."""

    min_words: int = Field(default=20, ge=0)
    """Fewest words of a document, 0 or more."""
    gopher_quality: bool = True
    """Word counts, word lengths, symbols, bullets and stop words (Rae et al. 2021)."""
    gopher_repetition: bool = True
    """Repeated lines, paragraphs and n-grams (Rae et al. 2021)."""
    c4_quality: bool = False
    """Sentences, placeholder text and curly brackets (Raffel et al. 2020); lines may be removed."""
    fineweb_quality: bool = False
    """Line punctuation, short lines and repeated characters (Penedo et al. 2024)."""
    mode: Literal["default", "datatrove"] = "default"
    """default: Gopher's share of alphabetic words counts words only; datatrove: punctuation marks count as words."""


class SourceSettings(Config):
    """How the documents of one source are cleaned."""

    rule: str | None = None
    """Name of a file in rules/ (without .py) for all pages of this source; blank looks for one named by the host."""
    filters: FilterSettings = FilterSettings()
    """Quality filters."""
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes that are kept, for example [en]; empty keeps all and asks nothing."""
    drop_repeated_paragraphs: bool = False
    """Remove paragraphs that an earlier document of this source already had."""


def _embedded() -> dict[str, SourceSettings]:
    """The embedded documentation: reference pages have few stop words and repeat each other's paragraphs."""
    filters = FilterSettings(gopher_quality=False, gopher_repetition=False)
    return {"python": SourceSettings(filters=filters, drop_repeated_paragraphs=True)}


class CleanConfig(Config):
    """What `clean` does with the raw data."""

    default: SourceSettings = SourceSettings()
    """Settings of every source that `sources` does not name."""
    sources: dict[str, SourceSettings] = Field(default_factory=_embedded)
    """Settings by source name."""
    engine: Literal["trafilatura", "resiliparse"] = "trafilatura"
    """Extraction where no rule applies: trafilatura is more exact, resiliparse about nine times faster."""
    max_html_bytes: int = Field(default=2_000_000, ge=10_000, le=50_000_000)
    """Largest page that is parsed, bytes, 10,000 to 50,000,000."""
    timeout_seconds: float = Field(default=20.0, gt=0, le=600)
    """Seconds that the extraction of one page may take, up to 600."""
    drop_duplicates: bool = True
    """Remove documents whose normalised text an earlier document already had."""
    validation_share: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of groups held out for validation, above 0 and below 0.5."""
    feedback_share: float = Field(default=0.25, ge=0, lt=0.5)
    """Share of problem groups set aside for votes, reward and align, 0 to below 0.5."""
    workers: int = Field(default=0, ge=0, le=1024)
    """Worker processes, up to 1024; 0 takes all cores. The corpus is the same for any number."""

    @model_validator(mode="after")
    def _leaves_some_to_train(self) -> CleanConfig:
        if self.validation_share + self.feedback_share >= 0.9:
            raise ValueError("validation_share and feedback_share leave less than a tenth for training")
        return self
