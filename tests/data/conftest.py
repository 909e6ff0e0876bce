"""Where the test material of the workshop is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Folder of the workshop's test material; the test is skipped where it is absent."""

    def find(name: str) -> Path:
        if not (SHARED / name).is_dir():
            pytest.skip(f"needs ../shared/{name}")
        return SHARED / name

    return find
