"""What differs between two workspaces, and what came out: settings, data and code from the stages' own reports.

The reports are those of the runs that made the products that stand there, so a product that was restored from the
cache is compared by the run that made it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_core.contract import BadInput
from llm_core.pipeline import PIPELINE
from tasks.workspace import Workspace

Cells = tuple[str, str, str]


@dataclass(frozen=True)
class Comparison:
    """Rows of (name, value in the first, value in the second), "" where one has none; only what differs, but for
    `results`, which holds every final figure with the difference as a fourth cell."""

    names: tuple[str, str]
    params: list[Cells]
    data: list[Cells]
    code: list[Cells]
    results: list[tuple[str, str, str, str]]

    def tables(self) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
        """(title, column names, rows) of each part."""
        for title in ("params", "data", "code"):
            yield title, (title, *self.names), list(getattr(self, title))
        yield "results", ("result", *self.names, "difference"), list(self.results)

    def markdown(self) -> str:
        """The comparison as Markdown tables."""
        lines = [f"# {self.names[0]} and {self.names[1]}"]
        for title, columns, rows in self.tables():
            lines += ["", f"## {title}", ""]
            if rows:
                lines += [_row(columns), _row(("---",) * len(columns)), *map(_row, rows)]
            else:
                lines.append("No difference." if title != "results" else "Nothing has run.")
        return "\n".join(lines) + "\n"


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def compare(project: Path, first: str, second: str) -> Comparison:
    """Compare two workspaces, `main` or an experiment's name. Raises `BadInput` for an unknown one."""
    reports = [_reports(project, name) for name in (first, second)]
    both = reports[0].keys() & reports[1].keys()  # a stage that has run in one alone stands under data
    params = [_joined({verb: found[verb] for verb in found if verb in both}, "params") for found in reports]
    data = [{verb: report["product"][:16] for verb, report in found.items()} for found in reports]
    code = [
        {
            f"{verb} {key}": str(value)
            for verb, report in found.items()
            if verb in both
            for key, value in (("commit", report["run"]["git_commit"][:12]), ("device", report["run"]["device"]))
        }
        for found in reports
    ]
    results = [
        {f"{verb} {name}": value for verb, report in found.items() for name, value in report["metrics"].items()}
        for found in reports
    ]
    return Comparison(
        (first, second),
        _differing(*params),
        _differing(*data),
        _differing(*code),
        [
            (name, _figure(results[0].get(name)), _figure(results[1].get(name)), _difference(name, *results))
            for name in dict.fromkeys([*results[0], *results[1]])
        ],
    )


def _reports(project: Path, name: str) -> dict[str, dict[str, Any]]:
    root = project if name == "main" else project / "runs" / name
    if not (root / "params.yaml").is_file():
        known = ", ".join(["main", *sorted(path.name for path in (project / "runs").glob("*"))])
        raise BadInput(f"compare: no experiment {name!r}; there are {known}")
    space = Workspace.at(root)
    found = {row.verb: report for row in PIPELINE if (report := space.read_report(row.verb))}
    if not found:
        raise BadInput(f"compare: {name} has no reports yet: run it first")
    return found


def _joined(reports: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, str]:
    return {f"{verb}.{name}": str(value) for verb, report in reports.items() for name, value in report[key].items()}


def _differing(first: Mapping[str, str], second: Mapping[str, str]) -> list[Cells]:
    names = dict.fromkeys([*first, *second])
    return [(name, first.get(name, ""), second.get(name, "")) for name in names if first.get(name) != second.get(name)]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _difference(name: str, first: Mapping[str, float], second: Mapping[str, float]) -> str:
    return f"{second[name] - first[name]:+,.4g}" if name in first and name in second else ""
