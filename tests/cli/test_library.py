from __future__ import annotations

from pathlib import Path
from typing import Any

import ocibuild
import pytest

from .conftest import Answer, FakeDaemon


def test_a_build_calls_back_and_gives_its_result(fake: FakeDaemon, tmp_path: Path) -> None:
    done = {"n": 1, "t": 2.0, "type": "build.done", "image": "sha256:1"}
    fake.answers["POST /v1/builds"] = Answer(lines=[{"type": "build.started", "id": "b"}, done])
    seen: list[Any] = []
    with ocibuild.Client() as client:
        result = client.build(str(tmp_path), tags=["x"], on_event=seen.append)
    assert result["image"] == "sha256:1"
    assert [event["type"] for event in seen] == ["build.started", "build.done"]
    assert fake.last("/v1/builds").query == "follow=1"


def test_a_failed_build_is_an_error_with_its_code(fake: FakeDaemon, tmp_path: Path) -> None:
    error = {"code": "step-failed", "message": "m", "details": {"exit_code": 4}}
    fake.answers["POST /v1/builds"] = Answer(lines=[{"type": "build.failed", "error": error}])
    with ocibuild.Client() as client, pytest.raises(ocibuild.ApiError) as caught:
        client.build(str(tmp_path))
    assert (caught.value.code, caught.value.exit_code) == ("step-failed", 4)


def test_one_connection_serves_many_calls(fake: FakeDaemon) -> None:
    fake.answers["GET /v1/version"] = Answer({"version": "1"})
    with ocibuild.Client() as client:
        assert [client.version()["version"] for _ in range(3)] == ["1"] * 3
        first = client.connection()
        with pytest.raises(ocibuild.ApiError):
            client.info()
        assert client.version() == {"version": "1"}
        assert client.connection() is not first


def test_a_connection_that_the_daemon_closed_is_made_again(fake: FakeDaemon) -> None:
    fake.answers["GET /v1/version"] = Answer({"version": "1"})
    with ocibuild.Client() as client:
        client.version()
        client.connection().socket.shutdown(2)
        assert client.version() == {"version": "1"}


def test_an_error_that_is_no_json_is_told_as_it_is(fake: FakeDaemon) -> None:
    fake.answers["GET /v1/info"] = Answer(raw=b"<html>bad gateway", status=502)
    with ocibuild.Client() as client, pytest.raises(ocibuild.ApiError, match="502: <html>bad gateway"):
        client.info()


def test_an_unknown_name_of_the_library_is_no_attribute() -> None:
    with pytest.raises(AttributeError):
        _ = ocibuild.Clientt  # type: ignore[attr-defined]
