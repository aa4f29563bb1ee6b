"""The small problems: right answers, distinct, and groups that hold the operands together."""

from __future__ import annotations

import pytest

from llm_core.contract import BadInput
from llm_core.data.sources.problems import OPERATIONS, generate, is_right, value
from llm_core.settings.acquire import ProblemsSource


@pytest.fixture(scope="module")
def problems() -> list:
    return generate(12_000, 1)


def test_the_same_seed_gives_the_same_problems(problems: list) -> None:
    assert generate(12_000, 1) == problems
    assert generate(12_000, 2) != problems


def test_answers_are_right_by_an_independent_evaluation(problems: list) -> None:
    for problem in problems:
        assert problem.answer == str(eval(problem.expression))  # the generator's own expressions
        assert is_right(f" {problem.answer}\n", problem.expression)
        assert not is_right(problem.answer + " 0", problem.expression)


def test_problems_are_distinct_and_various(problems: list) -> None:
    assert len({problem.expression for problem in problems}) == 12_000
    assert len({problem.question.split()[0] for problem in problems}) > 10
    assert max(len(problem.question) for problem in problems) < 70


def test_the_same_operands_share_a_group() -> None:
    by_operands: dict[tuple[int, ...], set[str]] = {}
    for problem in generate(5_000, 3):
        if problem.expression[0].isdigit():
            left, _, right = problem.expression.split()
            by_operands.setdefault(tuple(sorted((int(left), int(right)))), set()).add(problem.group)
    assert all(len(groups) == 1 for groups in by_operands.values())
    assert any(operands for operands in by_operands)


def test_no_constant_is_right_often(problems: list) -> None:
    answers = [problem.answer for problem in problems]
    assert max(answers.count(answer) for answer in set(answers)) / len(answers) < 0.1


@pytest.mark.parametrize(
    "expression",
    ["__import__('os')", "().__class__", "open('/etc/passwd')", "9 ** 9", "[x for x in (1,)]", "1 +", "x" * 500],
)
def test_only_the_generators_own_forms_are_evaluated(expression: str) -> None:
    with pytest.raises(ValueError, match="no expression"):
        value(expression)


def test_more_problems_than_there_are_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_core.data.sources import problems as module

    monkeypatch.setattr(module, "TRIES", 2)
    monkeypatch.setattr(module, "OPERATIONS", {"sum": (module._sum, 1)})
    with pytest.raises(BadInput, match="not 20000"):
        generate(20_000, 1)


def test_only_the_operations_asked_for_are_drawn() -> None:
    assert {p.expression.partition("(")[0] for p in generate(300, 1, ("len", "max"))} == {"len", "max"}


def test_the_settings_name_every_operation() -> None:
    for name in OPERATIONS:
        ProblemsSource(operations=(name,))
