"""`python -P settings_again.py STAGE` in a checkout of an earlier commit: give params.yaml the settings of a past run.

The flat settings that the run recorded come on standard input, as JSON. They are read by that commit's own code, and
what it makes of them must be recorded in the same words, or this ends with exit code 2.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


def nested(flat: Mapping[str, str]) -> Any:
    """Settings from `a.b.0.c` keys with text values, the reverse of `tasks.record.flatten` as far as it can be told."""
    tree: dict[str, Any] = {}
    for key, text in flat.items():
        *parents, last = key.split(".")
        place = tree
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = value_of(text)
    return _lists(tree)


def value_of(text: str) -> Any:
    """What a value's text stood for: None, a number, a truth value, a list, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _lists(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    if tree and all(key.isdigit() for key in tree):
        return [_lists(tree[key]) for key in sorted(tree, key=int)]
    return {key: _lists(value) for key, value in tree.items()}


def main(verb: str) -> int:
    """Write the section of params.yaml in the current directory."""
    from llm_core.pipeline import stage  # the checkout's own, which PYTHONPATH names
    from tasks.record import flatten

    recorded: dict[str, str] = json.load(sys.stdin)
    path = Path("params.yaml")
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for section in (content.get(verb) or {}, nested(recorded)):
        try:
            config = stage(verb).config.model_validate(section)
        except ValueError:
            continue  # not these settings
        if flatten(config.model_dump(mode="json")) == recorded:
            content[verb] = section
            path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
            return 0
    print(f"params.yaml: the settings that were recorded for {verb} cannot be read back", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
