"""Per-site extraction rules: a file rules/HOST.py with a function `extract(soup)`, found by a page's host.

The function gets BeautifulSoup's tree of the page and returns its text, or None to leave the page to the engine.
"""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from llm_core.contract import BadInput
from llm_core.data.extract import Rule

_NAME = re.compile(r"[\w.-]+")


def rule_for(url: str, folder: Path, name: str | None = None) -> Rule | None:
    """The rule named `name`, else that of the URL's host, without a leading www.; None if there is none.

    Raises `BadInput` if a rule that is named does not exist or has no `extract`.
    """
    if name is not None:
        path = folder / f"{name}.py"
        if not _NAME.fullmatch(name) or not path.is_file():
            raise BadInput(f"clean.sources.rule: there is no rule {name!r} in {folder}")
        return _load(path)
    host = urlsplit(url).hostname or ""
    path = folder / f"{host.removeprefix('www.')}.py"
    return _load(path) if host and _NAME.fullmatch(host) and path.is_file() else None


@lru_cache(256)
def _load(path: Path) -> Rule:
    spec = importlib.util.spec_from_file_location(f"rule_{path.stem.replace('.', '_')}", path)
    if spec is None or spec.loader is None:
        raise BadInput(f"{path}: cannot be loaded as a rule")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "extract", None)):
        raise BadInput(f"{path}: a rule needs a function extract(soup)")
    return cast(Rule, module.extract)
