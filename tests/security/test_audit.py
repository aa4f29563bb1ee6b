"""`make audit`: what it says of pip-audit's findings, and when the service is out of reach."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import audit


def program(folder: Path, content: object, says: str = "") -> str:
    """A stand-in for pip-audit that writes `content` where it is told."""
    path = folder / "pip-audit"
    path.write_text(
        '#!/bin/sh\nwhile [ $# -gt 0 ]; do [ "$1" = --output ] && out=$2; shift; done\n'
        f"echo '{says}' >&2\n" + (f"cat > \"$out\" <<'END'\n{json.dumps(content)}\nEND\n" if content else "exit 1\n")
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("content", "status", "sentence"),
    [
        (None, 0, "cannot be reached from here, so nothing was compared (no route)"),
        ({"dependencies": [{"name": "a", "skip_reason": "not found"}]}, 0, "so nothing was compared"),
        ({"dependencies": [{"name": "a", "version": "1", "vulns": []}]}, 0, "0 known in 1 packages"),
        (
            {"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}]},
            1,
            "a 1: CVE-1, mended in 2",
        ),
    ],
)
def test_what_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: object, status: int, sentence: str
) -> None:
    assert audit.main(program(tmp_path, content, "no route"), tmp_path / "audit.json") == status
    assert sentence in capsys.readouterr().out
