"""Compare what is installed with the known vulnerabilities: `make audit` calls this behind the bill of materials.

pip-audit asks PyPI's service; where that does not answer, it lists every package as unknown, or stops. Then one
sentence says so, and nothing is claimed. Ends with 1 if a vulnerability is known.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

OWN = {"groundup", "pip", "setuptools", "wheel"}
PATIENCE_S = 900


def compared(content: dict[str, Any]) -> tuple[int, list[str]]:
    """(packages that the service knows, a sentence for each vulnerability)."""
    packages = [package for package in content["dependencies"] if package["name"] not in OWN]
    known = [package for package in packages if "skip_reason" not in package]
    sentences = [
        f"{package['name']} {package['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'none'}"
        for package in known
        for found in package["vulns"]
    ]
    return len(known), sentences


def main(program: str, out: Path) -> int:
    """Write pip-audit's findings to `out` and say what they are."""
    installed = sysconfig.get_path("purelib")
    command = [program, "--path", installed, "--format", "json", "--output", str(out), "--timeout", "5"]
    out.unlink(missing_ok=True)
    try:
        done = subprocess.run(
            [*command, "--progress-spinner", "off"], capture_output=True, text=True, timeout=PATIENCE_S
        )
        said = done.stderr.strip().splitlines()
    except subprocess.TimeoutExpired:
        said = [f"no answer within {PATIENCE_S} s"]
    content = json.loads(out.read_text()) if out.is_file() and out.stat().st_size else {"dependencies": []}
    known, sentences = compared(content)
    if not known:
        out.unlink(missing_ok=True)
        reason = f" ({said[-1][:200]})" if said else ""
        print(f"vulnerabilities: the service cannot be reached from here, so nothing was compared{reason}")
        return 0
    print(f"vulnerabilities: {len(sentences)} known in {known} packages; {out}")
    print("\n".join(sentences), end="\n" if sentences else "")
    return int(bool(sentences))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
