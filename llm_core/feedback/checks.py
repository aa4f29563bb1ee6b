"""Verifiable rewards: plain functions of an answer and what its prompt says about the right one.

To add one, write such a function and name it in `CHECKS`; `align.online.check` chooses among the names.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from llm_core.data.sources.problems import is_right

Check = Callable[[str, str], bool]
"""(answer, expected) to whether the answer is right."""
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def python_value(answer: str, expected: str) -> bool:
    """The answer is the value of the Python expression `expected`, of the forms that the problems' generator writes."""
    return is_right(answer, expected)


def exact(answer: str, expected: str) -> bool:
    """The answer is the expected text, white space around it apart."""
    return answer.strip() == expected.strip()


def number(answer: str, expected: str) -> bool:
    """The last number in the answer is the last one in `expected`; thousands may be set off by commas (GSM8K)."""
    given, wanted = (_NUMBER.findall(text.replace(",", "")) for text in (answer, expected))
    return bool(given and wanted) and float(given[-1]) == float(wanted[-1])


def contains(answer: str, expected: str) -> bool:
    """The expected text stands somewhere in the answer, in capitals or not. Easily cheated by long answers."""
    return expected.strip().casefold() in answer.casefold()


CHECKS: dict[str, Check] = {"python": python_value, "exact": exact, "number": number, "contains": contains}
"""The checks by the names that the settings use."""
