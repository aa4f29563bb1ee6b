"""One page looked at closely: what a rule or the default makes of it, and what each engine would.

For people who write a rule: nothing is hidden here. An engine that hangs or crashes over the page is shown as such, and
what a rule raises is raised.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bs4 import BeautifulSoup

from llm_core.data.characters import CharacterOptions, repair
from llm_core.data.extract import (
    ENGINES,
    MIN_RULE_CHARACTERS,
    Page,
    Rule,
    Ruled,
    Unreadable,
    by_engine,
    main_text,
    read,
)
from llm_core.data.metadata import Metadata, forbids_indexing
from llm_core.data.rules import PythonRule, SelectorRule, rule_for
from llm_core.parallel import isolated

SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Trial:
    """What one way of extraction gives: its text, or why there is none, and the CPU seconds it took."""

    engine: str
    text: str
    seconds: float
    problem: str | None = None

    @property
    def characters(self) -> int:
        """The text's length."""
        return len(self.text)


@dataclass(frozen=True, slots=True)
class Tryout:
    """What is known of a page: `text` and `by` are what `clean` would take, `trials` all engines beside each other."""

    url: str
    text: str
    by: str
    """ "rule", an engine, or "text" for plain text."""
    rule: str | None
    """File of the rule that applies, whether or not it found enough."""
    problem: str | None
    """Why the page would be dropped, for example "too_deep", "noindex"; None if it would not."""
    metadata: dict[str, str | None]
    trials: tuple[Trial, ...]


def try_page(
    data: bytes,
    url: str,
    content_type: str | None,
    rules_folder: Path,
    rule: str | None = None,
    *,
    engine: str = "trafilatura",
    min_rule_characters: int = MIN_RULE_CHARACTERS,
) -> Tryout:
    """Extract a page by its rule (`rule` names one, else the URL's host finds it) and by every engine.

    Raises `BadInput` for a rule that does not exist or cannot be used, and whatever the rule itself raises.
    """
    found = rule_for(url, rules_folder, rule)
    file = str(found.path) if isinstance(found, PythonRule | SelectorRule) else None
    try:
        page = read(data, content_type)
    except Unreadable as error:
        return Tryout(url, "", engine, file, str(error), asdict(Metadata()), ())
    if not isinstance(page, Page):
        text = repair(page)
        return Tryout(url, text, "text", file, None if text else "no_text", asdict(Metadata()), ())
    trials = tuple(isolated(_trial, [(name, page.html) for name in ENGINES], seconds=SECONDS, failed=_failed))
    by_name = {trial.engine: trial for trial in trials}
    if by_name[engine].problem in ("timeout", "crashed"):
        text, by, head, problem = "", engine, page.metadata, by_name[engine].problem
    else:
        chosen = main_text(page, engine=engine, rule=_strict(found), min_rule_characters=min_rule_characters)
        text, by, head = repair(chosen.text, CharacterOptions()), chosen.by, chosen.metadata
        problem = None if text else "no_text"
    if forbids_indexing(head.robots):
        problem = "noindex"
    return Tryout(url, text, by, file, problem, asdict(head), trials)


def _strict(rule: Rule | None) -> Rule | None:
    """The rule without the shield that turns what it raises into a reason."""
    if not isinstance(rule, PythonRule | SelectorRule):
        return rule

    def strict(soup: BeautifulSoup) -> Ruled:
        return rule.strict(soup)

    return strict


def _trial(item: tuple[str, str]) -> Trial:
    engine, html = item
    by_engine("<p>x</p>", engine)  # what it costs to import is not the page's doing
    began = time.process_time()
    try:
        text, problem = repair(by_engine(html, engine)), None
    except Unreadable as error:
        text, problem = "", str(error)
    return Trial(engine, text, time.process_time() - began, problem or (None if text else "no_text"))


def _failed(item: tuple[str, str], reason: str) -> Trial:
    return Trial(item[0], "", SECONDS if reason == "timeout" else 0.0, reason)
