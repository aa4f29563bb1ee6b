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


class CharacterSettings(Config):
    """What happens to a text's characters beyond mending.

    Prose keeps its punctuation and its capitals by default: they carry meaning (where a sentence ends, what is a name,
    what is code), a model that never saw them cannot write them, and a byte-level tokenizer has no need of a small
    alphabet. Removing them is for other uses, such as counting words.
    """

    punctuation: Literal["keep", "squeeze", "remove"] = "squeeze"
    """keep: as it is; squeeze: more than three of the same mark in a row become three; remove: a space for each."""
    case: Literal["keep", "lower"] = "keep"
    """keep: as it is; lower: all small letters."""


class PersonalDataSettings(Config):
    """Which personal data is replaced by a fixed placeholder in the text of documents; each kind is counted."""

    email: bool = True
    """E-mail addresses become [EMAIL], those at domains reserved for examples apart."""
    ip: bool = True
    """Public IPv4 and IPv6 addresses become [IP]; private and documentation ranges and version numbers stay."""
    phone: bool = True
    """Telephone numbers in international form, and in national form of `phone_regions`, become [PHONE]."""
    iban: bool = True
    """Bank account numbers (IBAN) whose check digits are right become [IBAN]."""
    card: bool = True
    """Payment card numbers of a known issuer's length whose Luhn digit is right become [CARD]."""
    phone_regions: tuple[str, ...] = ("US",)
    """ISO 3166 codes of the countries whose national way of writing telephone numbers is looked for."""


class DecontaminationSettings(Config):
    """What counts as a piece of an evaluation set. The sets are the files in heldout/."""

    n: int = Field(default=13, ge=5, le=50)
    """Words in a row that a document may not share with an evaluation set, 5 to 50 (GPT-3: 13)."""
    shortest: int = Field(default=8, ge=5, le=50)
    """Items of fewer than `n` words are looked for whole if they have this many words, 5 to 50; below it never."""
    fields: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """By file name in heldout/: the fields that are looked for; a file not named here is looked for in all its text."""


class SourceSettings(Config):
    """How the documents of one source are cleaned."""

    engine: Literal["trafilatura", "trafilatura_precise", "resiliparse", "text"] | None = None
    """Extraction engine of this source; blank takes that of `clean`."""
    rule: str | None = None
    """Name of a file in rules/ (without .py or .yaml) for all pages of this source; blank looks for one named by the
    host."""
    rule_min_characters: int = Field(default=25, ge=0, le=100_000)
    """Fewest characters of text that a rule must find, 0 to 100,000, else the engine takes over."""
    respect_noindex: bool = True
    """Drop pages that ask robots not to index them (meta element or header)."""
    characters: CharacterSettings = CharacterSettings()
    """Punctuation and case."""
    personal_data: PersonalDataSettings = PersonalDataSettings()
    """What is masked."""
    language_threshold: float = Field(default=0.65, ge=0, le=1)
    """Least probability of the language found, 0 to 1; below it a document counts as of no language kept."""
    record_language: bool = False
    """Find out the language of each document even if `languages` is empty; about 1 ms each."""
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
    engine: Literal["trafilatura", "trafilatura_precise", "resiliparse", "text"] = "trafilatura"
    """Extraction where no rule applies: trafilatura is exact, trafilatura_precise leaves out more that is doubtful and
    takes a third longer, resiliparse is about nine times faster and less exact, text takes all that is visible."""
    max_html_bytes: int = Field(default=2_000_000, ge=10_000, le=50_000_000)
    """Largest page that is parsed, bytes, 10,000 to 50,000,000."""
    timeout_seconds: float = Field(default=20.0, gt=0, le=600)
    """Seconds that one page may take, up to 600; its worker is then ended and the page dropped."""
    decontamination: DecontaminationSettings = DecontaminationSettings()
    """Documents that hold a piece of an evaluation set are dropped."""
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
