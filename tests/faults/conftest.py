"""State directories for crash tests: there are hundreds of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from filler import quick_directory


@pytest.fixture
def state() -> Iterator[Path]:
    """Where a state directory can be; not made yet."""
    with quick_directory() as directory:
        yield directory / "state"
