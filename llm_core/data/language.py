"""Which language a text is in."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

CHARACTERS = 2_000


def language_of(text: str) -> tuple[str, float]:
    """(ISO 639-1 code, its probability) by py3langid, from 2,000 characters of the middle of the text.

    The beginning is where menus and bylines in another language stand, if anywhere. A text without letters has the
    probability of pure chance.
    """
    start = max(0, (len(text) - CHARACTERS) // 2)
    code, probability = _identifier().classify(text[start : start + CHARACTERS])
    return str(code), float(probability)


@lru_cache(1)
def _identifier() -> Any:
    from py3langid import langid  # half a second, and only some sources ask

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
