"""Small problems whose answers are checked by running Python.

Operands stay below 100 and words are spelled letter by letter ("Reverse c a t."), so that a model of one or two
million parameters learns about half of them in a minute and a half on a CPU: enough to be useful, and enough left for
feedback to improve. No copied question, constant or long answer is ever right.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llm_core.contract import BadInput

CONSONANTS, VOWELS = "bcdfghjklmnpqrstvwxyz", "aeiou"
TRIES = 50
Draft = tuple[str, str, str]
_FUNCTIONS: dict[str, Callable[..., Any]] = {"max": max, "min": min, "len": len}
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, its answer, the Python expression whose value the answer is, and the operands as `group`."""

    question: str
    answer: str
    expression: str
    group: str


def value(expression: str) -> str:
    """The value of a problem's expression, as text. Raises `ValueError` for anything but the generator's own forms."""
    if len(expression) > _LONGEST:
        raise ValueError("no expression of a problem: it is too long")
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"no expression of a problem: {expression!r}") from error
    try:
        return str(_worth(tree.body))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"no expression of a problem: {expression!r}") from error


def _worth(node: ast.expr) -> Any:
    """The value of a node of the generator's own forms: nothing else is ever run. Raises `ValueError` or TypeError."""
    match node:
        case ast.Constant(value=int() | str() as found) if not isinstance(found, bool):
            return found
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _number(left) + _number(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _number(left) - _number(right)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*map(_worth, args))
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str() as glue), attr="join"), args=[arg], keywords=[]
        ):
            return glue.join(_worth(arg))
        case ast.Subscript(value=inner, slice=ast.Slice(lower=None, upper=None, step=step)) if step is not None:
            return _worth(inner)[:: _number(step)]
    raise ValueError("not of the generator's forms")


def _number(node: ast.expr) -> int:
    found = _worth(node)
    if not isinstance(found, int):
        raise ValueError("a number is needed")
    return found


def is_right(answer: str, expression: str) -> bool:
    """Whether an answer, its outer white space removed, is exactly the expression's value."""
    return answer.strip() == value(expression)


def generate(count: int, seed: int, operations: Sequence[str] = ()) -> list[Problem]:
    """`count` problems with distinct expressions. Raises `BadInput` if there are not that many.

    `operations` keeps only these (keys of `OPERATIONS`); empty takes all.
    """
    draw = random.Random(seed)
    found: dict[str, Problem] = {}
    wanted = [OPERATIONS[name] for name in operations or OPERATIONS]
    makers = [maker for maker, weight in wanted for _ in range(weight)]
    for _ in range(count * TRIES):
        question, expression, group = draw.choice(makers)(draw)
        if expression not in found:
            found[expression] = Problem(question, value(expression), expression, group)
        if len(found) == count:
            return list(found.values())
    raise BadInput(f"count: the generator knows only about {len(found)} distinct problems, not {count}")


def _draft(draw: random.Random, phrasings: Sequence[str], expression: str, operands: Sequence[int | str]) -> Draft:
    """(question, expression, group)"""
    spelled = [" ".join(item) if isinstance(item, str) else item for item in operands]
    listed = ", ".join(map(str, spelled[:-1])) + f" and {spelled[-1]}"
    question = draw.choice(phrasings).format(*spelled, listed=listed, code=expression)
    names = sorted(min(item, item[::-1]) if isinstance(item, str) else f"{item:02d}" for item in operands)
    return question, expression, "-".join(names)


def _sum(draw: random.Random) -> Draft:
    a, b = draw.randrange(100), draw.randrange(100)
    phrasings = ("What is {0} plus {1}?", "What is {code}?", "Add {0} and {1}.", "{code} = ?")
    return _draft(draw, phrasings, f"{a} + {b}", (a, b))


def _difference(draw: random.Random) -> Draft:
    b, a = sorted((draw.randrange(100), draw.randrange(100)))
    phrasings = ("What is {0} minus {1}?", "What is {code}?", "Take {1} from {0}.", "{code} = ?")
    return _draft(draw, phrasings, f"{a} - {b}", (a, b))


def _largest(draw: random.Random) -> Draft:
    numbers = draw.sample(range(100), draw.randint(2, 4))
    phrasings = ("Which is the largest of {listed}?", "What is the maximum of {listed}?", "{code} = ?")
    return _draft(draw, phrasings, f"max({', '.join(map(str, numbers))})", numbers)


def _smallest(draw: random.Random) -> Draft:
    numbers = draw.sample(range(100), draw.randint(2, 4))
    phrasings = ("Which is the smallest of {listed}?", "What is the minimum of {listed}?", "{code} = ?")
    return _draft(draw, phrasings, f"min({', '.join(map(str, numbers))})", numbers)


def _length(draw: random.Random) -> Draft:
    word = _word(draw)
    phrasings = ("How many letters are in {0}?", "Count the letters of {0}.", "How long is the word {0}?")
    return _draft(draw, phrasings, f"len({word!r})", (word,))


def _reverse(draw: random.Random) -> Draft:
    word = _word(draw)
    phrasings = ("Reverse {0}.", "Write {0} backwards.", "What is {0} in reverse?")
    return _draft(draw, phrasings, f"' '.join({word!r}[::-1])", (word,))


def _word(draw: random.Random) -> str:
    """Three to five letters that can be spoken."""
    start = draw.randrange(2)
    return "".join(draw.choice(VOWELS if (start + i) % 2 else CONSONANTS) for i in range(draw.randint(3, 5)))


OPERATIONS: dict[str, tuple[Callable[[random.Random], Draft], int]] = {
    "sum": (_sum, 5),
    "difference": (_difference, 4),
    "max": (_largest, 4),
    "min": (_smallest, 2),
    "len": (_length, 2),
    "reverse": (_reverse, 3),
}
"""What generates each kind of problem, and how often it is drawn beside the others."""


def rows(problems: Sequence[Problem]) -> Iterator[dict[str, Any]]:
    """The problems in the shape of raw dialogues, the expression as `check`."""
    for problem in problems:
        yield {
            "url": None,
            "group": problem.group,
            "kind": "problem",
            "messages": [
                {"role": "user", "content": problem.question},
                {"role": "assistant", "content": problem.answer},
            ],
            "check": problem.expression,
        }
