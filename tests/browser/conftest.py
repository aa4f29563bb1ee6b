"""A real browser, and the functions that drive it: those that make the README's pictures."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def driver(root: Path) -> ModuleType:
    """docs/screenshots.py as a module; skips where playwright is absent."""
    pytest.importorskip("playwright", reason="playwright is not installed")
    spec = importlib.util.spec_from_file_location("screenshots", root / "docs" / "screenshots.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def browser(driver: ModuleType) -> Iterator[Any]:
    """A headless Chromium; skips where none is installed.

    It ends with its module: while it is there, its event loop runs in the tests' own thread.
    """
    executable = driver.chromium()
    if executable is None:
        pytest.skip("no Chromium here; on Debian: apt-get install chromium")
    with driver.open_browser(executable) as found:
        yield found
