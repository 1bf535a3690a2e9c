"""One nsd for a module of tests."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from fixtures import remove_tree
from sandboxes import Box, opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box() -> AsyncIterator[Box]:
    """nsd without the build network, one for a module: tests use trees of their own."""
    state = Path(tempfile.mkdtemp(prefix="ocibuildd-state-"))
    box = await opened(state)
    yield box
    await box.client.close()
    remove_tree(state)
