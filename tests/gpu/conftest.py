"""The marker of the tests here: `pytest -m gpu` runs them on a machine that has an NVIDIA GPU."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU; skipped where torch sees none")
