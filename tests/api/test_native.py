from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import PATIENCE, eventually

from ocibuildd.api import images, run, spaces
from ocibuildd.api.app import make_app
from ocibuildd.api.openapi import document
from ocibuildd.api.routes import ROUTES
from ocibuildd.api.services import Services
from ocibuildd.errors import Corrupt, InvalidArgument, Unauthorized
from ocibuildd.image.values import Pulled
from ocibuildd.model.digest import Digest
from ocibuildd.model.oci import ContainerConfig

from .conftest import Call

BUILD = {"context": {"kind": "empty"}, "dockerfile_text": "FROM x"}
ID = Digest("sha256:" + "a" * 64)


def test_the_document_describes_exactly_the_routes(served: Services) -> None:
    described = {
        (method.upper(), path)
        for path, operations in document()["paths"].items() for method in operations
    }
    registered = {
        (route.method, route.resource.canonical)
        for route in make_app(served).router.routes()
        if route.method != "HEAD" and route.resource is not None
    }
    assert described == registered == {(route.method, route.path) for route in ROUTES}


def test_every_reference_of_the_document_leads_somewhere() -> None:
    schemas = document()["components"]["schemas"]

    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"].rpartition("/")[2]} if "$ref" in value else set()
            return own.union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    assert references(document()) <= set(schemas)


async def test_the_document_is_served(call: Call) -> None:
    answer = await call("GET", "/v1/openapi.json")
    assert (await answer.json())["openapi"].startswith("3.1")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"},
        {"Host": "evil.example"}, {"Host": "evil.example:80"},
    ],
)
async def test_what_a_browser_sends_is_refused(call: Call, headers: dict[str, str]) -> None:
    answer = await call("GET", "/v1/version", headers=headers)
    assert answer.status == 403
    assert (await answer.json())["code"] == "denied"


@pytest.mark.parametrize(
    "host", ["docker", "api.moby.localhost", "localhost:2375", "%2Frun%2Fd.sock", "127.0.0.1", "d.sock"]
)
async def test_hosts_that_local_clients_send_are_taken(call: Call, host: str) -> None:
    assert (await call("GET", "/v1/version", headers={"Host": host})).status == 200


async def test_another_user_is_refused(call: Call, served: Services) -> None:
    import os

    served.owner = os.geteuid() + 1
    answer = await call("GET", "/v1/version")
    assert answer.status == (200 if os.geteuid() == 0 else 403)


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"{}", {"Content-Type": "text/plain"}, 415, "expected application/json"),
        (b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "expected"),
        (b"{", {}, 400, "body"),
        (b"", {}, 400, "context"),
        (b'{"context": {"kind": "empty"}, "tagz": []}', {}, 400, "tagz"),
        (b'{"context": {"kind": "moon"}}', {}, 400, "moon"),
        (b"[" * 100_000, {}, 400, "body"),
        (b'"\xff"', {}, 400, "body"),
    ],
)
async def test_a_malformed_body_is_told_of(
    call: Call, served: Services, body: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    headers = {"Content-Type": "application/json", **headers}
    answer = await call("POST", "/v1/builds", data=body, headers=headers)
    assert answer.status == status
    assert words in (await answer.json())["message"]
    assert not served.builds.requests


async def test_a_body_has_a_limit(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from ocibuildd.api import respond

    monkeypatch.setattr(respond, "MAX_JSON", 1000)
    answer = await call("POST", "/v1/builds", json={**BUILD, "dockerfile_text": "x" * 2000})
    assert answer.status == 413


async def test_compressed_bodies_are_not_unpacked(call: Call) -> None:
    import gzip

    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = await call("POST", "/v1/builds", data=gzip.compress(json.dumps(BUILD).encode()), headers=headers)
    assert answer.status == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("PUT", "/v1/builds", 405), ("GET", "/v1/builds/zz", 404),
     ("GET", "/v1/builds/b1/outputs/x", 400), ("GET", "/v1/builds/b1/events?from=-1", 400),
     ("GET", "/v1/images/history", 400), ("GET", "/v1/images?all=maybe", 400),
     ("GET", "/v1/images/save", 400), ("GET", "/v1/images/save?name=x&format=zip", 400)],
)
async def test_every_error_is_json(call: Call, method: str, path: str, status: int) -> None:
    answer = await call(method, path)
    assert answer.status == status
    assert {"code", "message"} <= set(await answer.json())


async def test_a_bug_of_ours_is_an_error_and_no_end(call: Call, served: Services) -> None:
    served.images.list = lambda **_: 1 / 0
    assert (await call("GET", "/v1/images")).status == 500
    assert (await call("GET", "/v1/version")).status == 200


async def test_a_build_is_started_for_the_peer(call: Call, served: Services) -> None:
    answer = await call("POST", "/v1/builds", json=BUILD)
    assert (answer.status, await answer.json()) == (201, {"id": "b1"})
    request, peer = served.builds.requests[0]
    assert request.dockerfile_text == "FROM x"
    assert peer.local
    assert peer.pid > 0


async def test_events_stream_as_they_come_and_end_with_the_build(call: Call, served: Services) -> None:
    served.builds.lines.put_nowait(b'{"n":0}\n')
    answer = await call("POST", "/v1/builds?follow=1", json=BUILD)
    assert answer.headers["Ocibuild-Build"] == "b1"
    assert await answer.content.readline() == b'{"n":0}\n'
    served.builds.lines.put_nowait(b'{"n":1}\n')
    assert await answer.content.readline() == b'{"n":1}\n'
    served.builds.lines.put_nowait(None)
    assert await answer.content.read() == b""
    assert served.builds.cancelled == []


@pytest.mark.parametrize(("query", "cancelled"), [("follow=1", ["b1"]), ("follow=1&detach=1", [])])
async def test_a_client_that_leaves_takes_its_build_with_it(
    call: Call, served: Services, query: str, cancelled: list[str]
) -> None:
    served.builds.lines.put_nowait(b"{}\n")
    answer = await call("POST", f"/v1/builds?{query}", json=BUILD)
    await answer.content.readline()
    answer.close()
    await eventually("the request's end", lambda: not served.active)
    assert served.builds.cancelled == cancelled


async def test_a_daemon_that_ends_takes_no_builds_and_says_so(call: Call, served: Services) -> None:
    served.draining = True
    assert (await call("POST", "/v1/builds", json=BUILD)).status == 503
    assert (await call("POST", "/v1/uploads", data=b"", headers={"Content-Type": "application/x-tar"})).status == 503
    assert (await call("GET", "/v1/health")).status == 503
    assert (await call("GET", "/v1/builds")).status == 200


async def test_an_upload_is_kept_whole_or_aborted(call: Call, served: Services, socket_path: Path) -> None:
    headers = {"Content-Type": "application/x-tar"}
    answer = await call("POST", "/v1/uploads", data=b"x" * 700_000, headers=headers)
    assert await answer.json() == {"id": "u1", "size": 700_000}
    assert served.builds.uploads == [b"x" * 700_000]
    reader, writer = await asyncio.open_unix_connection(str(socket_path))
    writer.write(
        b"POST /v1/uploads HTTP/1.1\r\nHost: d\r\nContent-Type: application/x-tar\r\nContent-Length: 9\r\n\r\nab"
    )
    await writer.drain()
    await eventually("the upload's begin", lambda: served.builds.begun == 2)
    writer.close()
    await eventually("the upload's end", lambda: served.builds.aborted)
    assert (served.builds.aborted, len(served.builds.uploads)) == (1, 1)
    del reader


async def test_progress_of_a_pull_is_a_line_each_and_the_result_the_last(call: Call, served: Services) -> None:
    async def pull(reference: str, **options: Any) -> Pulled:
        options["emit"]("status", id="l1", current=1, total=2, unit="bytes", text="downloading")
        await asyncio.sleep(0.01)
        options["emit"]("status", id="l1", current=2, total=2, unit="bytes", text="done")
        return Pulled(reference, ID, ID, fresh=True)

    served.images.pull = pull
    answer = await call("POST", "/v1/images/pull", json={"reference": "x:1"})
    lines = [json.loads(line) for line in (await answer.read()).splitlines()]
    assert [line["type"] for line in lines] == ["status", "status", "done"]
    assert lines[-1]["image"] == ID


async def test_a_failure_is_a_status_before_the_first_line_and_a_line_after(
    call: Call, served: Services
) -> None:
    told = asyncio.Event()

    async def pull(reference: str, **options: Any) -> Pulled:
        if reference == "late":
            options["emit"]("status", id="l1")
            await told.wait()
        raise Unauthorized("who are you")

    served.images.pull = pull
    assert (await call("POST", "/v1/images/pull", json={"reference": "soon"})).status == 401
    answer = await call("POST", "/v1/images/pull", json={"reference": "late"})
    told.set()
    assert answer.status == 200
    assert json.loads((await answer.read()).splitlines()[-1])["error"]["code"] == "unauthorized"


async def test_a_pull_ends_when_its_client_leaves(call: Call, served: Services) -> None:
    ended = asyncio.Event()

    async def pull(_reference: str, **options: Any) -> Pulled:
        options["emit"]("status", id="l1")
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        raise AssertionError

    served.images.pull = pull
    answer = await call("POST", "/v1/images/pull", json={"reference": "x"})
    await answer.content.readline()
    answer.close()
    assert await asyncio.wait_for(ended.wait(), PATIENCE)


async def test_a_tar_that_breaks_in_the_middle_cuts_the_connection(call: Call, served: Services) -> None:
    async def save(*_: Any, **__: Any) -> Any:
        yield b"x" * 100_000
        await asyncio.sleep(0.01)
        raise Corrupt("a blob")

    served.images.save = save
    answer = await call("GET", "/v1/images/save?name=x")
    with pytest.raises(aiohttp.ClientError):
        await answer.read()


# --- pure parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entrypoint", "args", "config", "command"),
    [
        (None, (), ContainerConfig(cmd=("a", "b")), ["a", "b"]),
        (None, ("x",), ContainerConfig(cmd=("a",)), ["x"]),
        (None, ("x",), ContainerConfig(entrypoint=("e",), cmd=("a",)), ["e", "x"]),
        (None, (), ContainerConfig(entrypoint=("e",), cmd=("a",)), ["e", "a"]),
        ("n", (), ContainerConfig(entrypoint=("e",), cmd=("a",)), ["n"]),
        ("", ("x",), ContainerConfig(entrypoint=("e",)), ["x"]),
    ],
)
def test_a_command_is_made_as_docker_run_makes_it(
    entrypoint: str | None, args: tuple[str, ...], config: ContainerConfig, command: list[str]
) -> None:
    assert run.command(run.RunBody("i", args=args, entrypoint=entrypoint), config) == command


def test_an_image_without_a_command_needs_one() -> None:
    with pytest.raises(InvalidArgument, match="names no command"):
        run.command(run.RunBody("i"), ContainerConfig())


def test_the_callers_variables_win_over_the_images() -> None:
    body = run.RunBody("i", env=(("A", "2"),), tty=True, term="vt100")
    found = dict(run.environment(body, ContainerConfig(env=("A=1", "B=x=y"))))
    assert (found["A"], found["B"], found["TERM"]) == ("2", "x=y", "vt100")
    assert found["PATH"].startswith("/usr/local/sbin")


@pytest.mark.parametrize(
    ("text", "moment"),
    [("100", 100.0), ("1h", 6400.0), ("1970-01-01T00:01:00+00:00", 60.0), ("1.5", 1.5)],
)
def test_until_is_an_age_or_a_time(text: str, moment: float) -> None:
    assert spaces.moment(text, now=10_000.0) == moment


@pytest.mark.parametrize("filters", [("until=soon",), ("color=red",), ("label",), ("=x",)])
def test_a_filter_that_is_none_is_refused(filters: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument):
        spaces.policies_for(spaces.PruneBody(filters=filters))


def test_a_prune_of_everything_takes_named_images_and_cache_mounts() -> None:
    kinds = {kind: policy for policy in spaces.policies_for(spaces.PruneBody(all=True)) for kind in policy.what}
    assert kinds["image"].tagged
    assert "mount" in kinds
    plain = spaces.policies_for(spaces.PruneBody(what="images"))
    assert not any(policy.tagged or "record" in policy.what for policy in plain)


def test_cache_filters_are_buildkits() -> None:
    body = spaces.PruneBody(what="builds", filters=("type=exec.cachemount", "description~=apt", "id!=x"))
    assert spaces.policies_for(body)[0].filters == ("type==exec.cachemount", "description~=apt", "id!=x")


def test_credentials_go_to_the_registry_of_the_reference() -> None:
    from ocibuildd.model.request import RegistryAuth

    auth = RegistryAuth("u", "p")
    assert images.auths(images.TransferBody("x", auth=auth)) == {"docker.io": auth}
    assert images.auths(images.TransferBody("h:5/x", auth=auth)) == {"h:5": auth}
    assert images.auths(images.TransferBody("x")) is None


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), prefix=st.sampled_from([
    b"", b"GET /v1/version HTTP/1.1\r\nHost: d\r\n", b"POST /v1/builds HTTP/1.1\r\nContent-Type: application/json\r\n",
    (b"POST /v1/run HTTP/1.1\r\nHost: d\r\nContent-Type: application/vnd.ocibuild.frames\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"),
]))
def test_no_bytes_bring_the_api_down(data: bytes, prefix: bytes, tmp_path_factory: Any) -> None:
    answer = asyncio.run(_throw(prefix + data, tmp_path_factory.mktemp("fuzz") / "s"))
    assert answer.startswith(b"HTTP/1.1 200")


async def _throw(data: bytes, path: Path) -> bytes:
    """What the API answers to the next client."""
    import os

    from ocibuildd.api.app import make_runner

    served = SimpleNamespace(owner=os.geteuid(), active=0, last=0.0, draining=True)
    runner = make_runner(make_app(served))  # type: ignore[arg-type]
    await runner.setup()
    await aiohttp.web.UnixSite(runner, str(path)).start()
    try:
        _, writer = await asyncio.open_unix_connection(str(path))
        writer.write(data)
        writer.write_eof()
        writer.close()
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"GET /v1/version HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), PATIENCE)
        writer.close()
        return answer
    finally:
        await runner.cleanup()
