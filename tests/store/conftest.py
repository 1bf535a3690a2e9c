"""An open store in a temporary directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from filler import Filler, quick_directory

from ocibuildd.store import Store


@pytest.fixture
def state() -> Iterator[Path]:
    with quick_directory() as directory:
        yield directory / "state"


@pytest.fixture
def store(state: Path) -> Iterator[Store]:
    with Store.open(state) as opened:
        yield opened


@pytest.fixture
def fill(store: Store) -> Filler:
    return Filler(store)
