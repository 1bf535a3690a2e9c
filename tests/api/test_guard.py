"""What stands before every handler."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from ocibuildd.api import guard
from ocibuildd.api.services import SERVICES


@pytest.fixture
def request_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(guard, "admit", lambda request, owner: None)
    app = web.Application()
    app[SERVICES] = SimpleNamespace(active=0, owner=0, last=0.0)  # type: ignore[misc]

    def make(*, closing: bool) -> web.Request:
        transport = Mock()
        transport.is_closing.return_value = closing
        return make_mocked_request("GET", "/v1/events", app=app, transport=transport)

    return make


async def reset(_request: web.Request) -> web.StreamResponse:
    raise ConnectionResetError("cannot write to closing transport")


async def test_a_client_that_left_before_the_answer_is_no_error(request_of: Any) -> None:
    request = request_of(closing=True)
    assert (await guard.guard(request, reset)).status == guard.CLIENT_LEFT
    assert request.app[SERVICES].active == 0


async def test_a_reset_of_another_connection_is_one(request_of: Any) -> None:
    with pytest.raises(ConnectionResetError):
        await guard.guard(request_of(closing=False), reset)


async def test_a_path_that_is_not_there_is_named_and_so_is_the_list(request_of: Any) -> None:
    async def missing(_request: web.Request) -> web.StreamResponse:
        raise web.HTTPNotFound

    answer = json.loads((await guard.guard(request_of(closing=False), missing)).body)
    assert answer == {
        "code": "not-found", "message": "GET /v1/events: not found",
        "hint": "GET /v1/openapi.json lists what there is",
    }
