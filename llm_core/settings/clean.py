"""Section `clean` of params.yaml: from pages to documents worth reading."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from llm_core.contract import Config
from llm_core.settings.cluster import ClusterSettings
from llm_core.settings.storage import StorageSettings

Share = Annotated[float, Field(ge=0, le=1)]
Language = Annotated[str, Field(pattern="^[a-z]{2,3}$")]
Region = Annotated[str, Field(pattern="^[A-Z]{2}$")]


class QualitySettings(Config):
    """Thresholds of Gopher's quality rules (Rae et al. 2021)."""

    min_words: int = Field(default=50, ge=0)
    """Fewest words, punctuation left out."""
    max_words: int = Field(default=100_000, ge=1)
    """Most words, punctuation left out."""
    min_mean_length: float = Field(default=3.0, ge=0, le=100)
    """Least mean length of a word, characters."""
    max_mean_length: float = Field(default=10.0, ge=0, le=100)
    """Greatest mean length of a word, characters."""
    max_symbols: float = Field(default=0.1, ge=0)
    """Most hashes, or ellipses, for each word."""
    max_bullet_lines: Share = 0.9
    """Largest share of lines that begin with a bullet, 0 to 1."""
    max_ellipsis_lines: Share = 0.3
    """Largest share of lines that end with an ellipsis, 0 to 1."""
    min_alphabetic: Share = 0.8
    """Least share of words with a letter, 0 to 1."""
    min_stop_words: int = Field(default=2, ge=0, le=8)
    """How many of the, be, to, of, and, that, have, with must occur, 0 to 8; 0 for other languages than English."""


class RepetitionSettings(Config):
    """Thresholds of Gopher's repetition rules (Rae et al. 2021): largest shares of what came before, 0 to 1."""

    paragraphs: Share = 0.3
    """Of the paragraphs."""
    paragraph_characters: Share = 0.2
    """Of the characters, in repeated paragraphs."""
    lines: Share = 0.3
    """Of the lines."""
    line_characters: Share = 0.2
    """Of the characters, in repeated lines."""
    top_n_grams: tuple[Share, Share, Share] = (0.20, 0.18, 0.16)
    """Of the characters, in the most frequent run of 2, 3 and 4 words."""
    duplicated_n_grams: tuple[Share, Share, Share, Share, Share, Share] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """Of the characters, in repeated runs of 5 to 10 words."""


class C4Settings(Config):
    """Thresholds and switches of C4's rules (Raffel et al. 2020)."""

    terminal_punctuation: bool = True
    """Remove lines that do not end a sentence; FineWeb switches this off."""
    min_sentences: int = Field(default=5, ge=0)
    """Fewest sentences of a document after lines were removed."""
    min_words_per_line: int = Field(default=3, ge=0)
    """Lines with fewer words are removed."""
    max_word_length: int = Field(default=1_000, ge=1)
    """Lines with a longer word are removed, characters."""
    citations: bool = True
    """Remove marks such as [12] and [citation needed]."""
    lorem_ipsum: bool = True
    """Drop documents with placeholder text."""
    javascript: bool = True
    """Remove lines that speak of JavaScript."""
    curly_bracket: bool = True
    """Drop documents with a curly bracket in a line that is kept."""
    policy: bool = True
    """Remove lines about cookies, privacy and terms of use."""
    min_paragraphs: int = Field(default=3, ge=0)
    """For c4_paragraphs: fewest long lines."""
    min_paragraph_length: int = Field(default=200, ge=0)
    """For c4_paragraphs: characters of a long line."""


class FineWebSettings(Config):
    """Thresholds of FineWeb's rules (Penedo et al. 2024)."""

    min_line_punctuation: Share = 0.12
    """Least share of lines that end a sentence, 0 to 1."""
    max_short_lines: Share = 0.67
    """Largest share of short lines, 0 to 1."""
    short_line: int = Field(default=30, ge=0)
    """Characters of a short line, at most."""
    max_repeated_characters: Share = 0.01
    """Largest share of characters in lines that came before, 0 to 1."""
    max_newlines: float = Field(default=0.3, ge=0)
    """Most line ends for each word."""


class UrlSettings(Config):
    """Files in lists/ that say which URLs are not wanted; none by default."""

    domains: tuple[str, ...] = ()
    """Files of registered domains and hosts; what lies under a listed host is meant too."""
    urls: tuple[str, ...] = ()
    """Files of whole URLs."""
    banned_words: tuple[str, ...] = ()
    """Files of words that no URL may have between its punctuation."""
    soft_banned_words: tuple[str, ...] = ()
    """Files of words of which a URL may have fewer than `soft_words`."""
    banned_subwords: tuple[str, ...] = ()
    """Files of letters that no URL may have anywhere, its punctuation left out."""
    soft_words: int = Field(default=2, ge=1)
    """How many soft banned words are too many."""


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
    c4_paragraphs: bool = False
    """Enough long lines, as in the multilingual C4 (Xue et al. 2021)."""
    fineweb_quality: bool = False
    """Line punctuation, short lines and repeated characters (Penedo et al. 2024)."""
    mode: Literal["default", "datatrove"] = "default"
    """default: Gopher's share of alphabetic words counts words only; datatrove: punctuation marks count as words."""
    quality: QualitySettings = QualitySettings()
    """Thresholds of gopher_quality."""
    repetition: RepetitionSettings = RepetitionSettings()
    """Thresholds of gopher_repetition."""
    c4: C4Settings = C4Settings()
    """Thresholds of c4_quality and c4_paragraphs."""
    fineweb: FineWebSettings = FineWebSettings()
    """Thresholds of fineweb_quality."""
    bad_words: tuple[str, ...] = ()
    """Files in lists/; a document that holds one of their words or phrases is dropped."""
    urls: UrlSettings = UrlSettings()
    """Files in lists/ about URLs."""


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
    phone_regions: tuple[Region, ...] = ("US",)
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
    languages: tuple[Language, ...] = ()
    """ISO 639-1 codes that are kept, for example [en]; empty keeps all and asks nothing."""
    drop_repeated_paragraphs: bool = False
    """Remove paragraphs that an earlier document of this source already had, from 100 characters on."""
    drop_repeated_lines: bool = False
    """Remove lines that an earlier document of this source already had, from 20 characters on: menus and footers."""


class NearDuplicateSettings(Config):
    """Keep one document of those that share most of their word 5-grams: the longest, then the first by source, URL."""

    drop: bool = True
    """Whether to look for them."""
    threshold: float = Field(default=0.7, ge=0.5, le=1)
    """Least estimated Jaccard similarity of near duplicates, 0.5 to 1; below 0.7 more and more pairs are missed."""


def _embedded() -> dict[str, SourceSettings]:
    """The embedded documentation: reference pages have few stop words and repeat each other's paragraphs."""
    filters = FilterSettings(gopher_quality=False, gopher_repetition=False)
    return {"python": SourceSettings(filters=filters, drop_repeated_paragraphs=True)}


class CleanConfig(Config):
    """What `clean` does with the raw data."""

    how: ClassVar[frozenset[str]] = Config.how | {"workers", "cluster", "storage"}

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
    """Processor seconds that one page may take, up to 600, or six times as long by the clock; its worker is then ended
    and the page dropped."""
    decontamination: DecontaminationSettings = DecontaminationSettings()
    """Documents that hold a piece of an evaluation set are dropped."""
    drop_duplicates: bool = True
    """Keep one document of those with the same text (case and white space aside) or the same URL: the longest, then
    the first by source and URL."""
    near_duplicates: NearDuplicateSettings = NearDuplicateSettings()
    """Documents that are nearly the same."""
    validation_share: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of groups held out for validation, above 0 and below 0.5."""
    feedback_share: float = Field(default=0.25, ge=0, lt=0.5)
    """Share of problem groups set aside for votes, reward and align, 0 to below 0.5."""
    workers: int = Field(default=0, ge=0, le=1024)
    """Worker processes, up to 1024; 0 takes all cores. The corpus is the same for any number."""
    cluster: ClusterSettings = ClusterSettings()
    """Where the workers are; left out, the section `cluster` of params.yaml says it."""
    storage: StorageSettings = StorageSettings()
    """Where the product's files lie; left out, the section `storage` of params.yaml says it."""

    @model_validator(mode="after")
    def _leaves_some_to_train(self) -> CleanConfig:
        if self.validation_share + self.feedback_share >= 0.9:
            raise ValueError("validation_share and feedback_share leave less than a tenth for training")
        return self
