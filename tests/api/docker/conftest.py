"""The daemon as a Docker engine."""

from __future__ import annotations

import pytest
from docker_engine import Engine
from fixtures import Daemon


@pytest.fixture
def engine(daemon: Daemon) -> Engine:
    return Engine(str(daemon.socket))
