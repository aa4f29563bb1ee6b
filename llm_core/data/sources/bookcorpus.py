"""BookCorpus in a Parquet copy: single sentences, joined to documents of a fixed number of sentences.

The copies are one stream of lower-case sentences without any border between books (Zhu et al. 2015, 11,038 books), so
that a document here is a run of neighbouring sentences, and its group is its own number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llm_core.data.sources.huggingface import DatasetOptions, DatasetRows
from llm_core.data.sources.parts import Parts
from llm_core.data.sources.rows import Row

WARNING = (
    "BookCorpus consists of novels whose authors were not asked and gave no licence: "
    "do not publish it, and ask a lawyer before you publish a model made from it"
)


class BookRows:
    """Documents of so many sentences: a `Resumable`."""

    def __init__(self, options: DatasetOptions, sentences: int, parts: Parts) -> None:
        """As `DatasetRows`; `sentences` make a document."""
        self._dataset = DatasetRows(options, parts)
        self._sentences = sentences
        self.facts = {**self._dataset.facts, "sentences": sentences}
        self.skipped, self.unreadable = self._dataset.skipped, self._dataset.unreadable

    @property
    def key(self) -> str:
        """The dataset's, and how many sentences make a document."""
        return f"{self._dataset.key} {self._sentences}"

    def state(self) -> Any:
        """Where the dataset is: always between two documents."""
        return self._dataset.state()

    def rows(self, state: Any) -> Iterator[Row]:
        """Documents behind `state`; the last may be shorter."""
        sentences: list[str] = []
        for row in self._dataset.rows(state):
            if row["text"].strip():
                sentences.append(row["text"].strip())
            if len(sentences) == self._sentences:
                yield {"text": " ".join(sentences), "content_type": "text/plain"}
                sentences = []
        if sentences:
            yield {"text": " ".join(sentences), "content_type": "text/plain"}
