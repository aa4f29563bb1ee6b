"""Which language a text is in."""

from __future__ import annotations

CHARACTERS = 2_000


def language_of(text: str) -> str:
    """ISO 639-1 code by py3langid, from the first 2,000 characters."""
    import py3langid  # half a second, and only some sources ask

    code: str = py3langid.classify(text[:CHARACTERS])[0]
    return code
