"""State directories for crash tests: in memory where possible, since a kill loses no page cache anyway and
there are hundreds of them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """Where a state directory can be; not made yet."""
    if not os.access(MEMORY, os.W_OK | os.X_OK):
        yield tmp_path / "state"
        return
    directory = Path(tempfile.mkdtemp(prefix="ocibuild-faults-", dir=MEMORY))
    yield directory / "state"
    shutil.rmtree(directory, ignore_errors=True)
