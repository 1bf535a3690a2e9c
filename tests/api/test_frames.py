from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from patience import PATIENCE, eventually

from ocibuildd.api import frames as frames_module
from ocibuildd.api.frames import CONTENT_TYPE, END, ERROR, EXIT, SIGNAL, SPEC, STDERR, STDIN, STDOUT
from ocibuildd.api.services import Services
from ocibuildd.errors import Unsupported
from ocibuildd.model.oci import ContainerConfig, ImageConfig

from .conftest import Call

HEADERS = {"Content-Type": CONTENT_TYPE}


def frame(kind: int, data: bytes = b"") -> bytes:
    return bytes((kind,)) + len(data).to_bytes(4, "big") + data


def frames(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        size = int.from_bytes(data[1:5], "big")
        found.append((data[0], data[5 : 5 + size]))
        data = data[5 + size :]
    return found


@pytest.fixture
def job(served: Services) -> Callable[[Any], None]:
    """Say what the ``run`` job does; the image ``i`` has the command ``sh``."""
    from types import SimpleNamespace

    lease = SimpleNamespace(add=lambda **_: None, release=lambda: None)
    served.images.find = lambda _: SimpleNamespace(chain=(1,), id="sha256:" + "a" * 64)
    config = ImageConfig(config=ContainerConfig(cmd=("sh",)))
    served.images.inspect = lambda _: SimpleNamespace(config=config)
    served.store.leases = SimpleNamespace(new=lambda name, *, passing: lease)

    async def ensure(_: Any) -> list[str]:
        return ["t1"]

    served.unpacker = SimpleNamespace(ensure_trees=ensure)

    def use(work: Any) -> None:
        served.nsd.call = work

    return use


SPEC_FRAME = frame(SPEC, json.dumps({"image": "i"}).encode())


async def test_output_comes_back_with_the_exit_status(call: Call, job: Any) -> None:
    async def work(name: str, spec: Any, fds: list[int], _event: Any) -> dict[str, Any]:
        assert (name, spec["args"], spec["lowers"], spec["tree"]) == ("run", ["sh"], ["t1"], "")
        os.write(fds[0], b"out")
        os.write(fds[1], b"err")
        return {"exit_code": 3, "signal": 0, "reason": "exit", "message": ""}

    job(work)
    answer = await call("POST", "/v1/run", data=SPEC_FRAME + frame(END), headers=HEADERS)
    found = frames(await answer.read())
    assert sorted(found[:2]) == [(STDOUT, b"out"), (STDERR, b"err")]
    assert found[2][0] == EXIT
    assert json.loads(found[2][1]) == {"exit_code": 3, "signal": 0}


async def test_input_reaches_the_process_while_its_output_comes_back(call: Call, job: Any) -> None:
    async def work(_name: str, _spec: Any, fds: list[int], _event: Any) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        while data := await loop.run_in_executor(None, os.read, fds[2], 100):
            os.write(fds[0], data.upper())
        return {"exit_code": 0}

    job(work)
    more: asyncio.Queue[bytes] = asyncio.Queue()

    async def body() -> AsyncIterator[bytes]:
        yield SPEC_FRAME
        while data := await more.get():
            yield data

    answer = await call("POST", "/v1/run", data=body(), headers=HEADERS)
    more.put_nowait(frame(STDIN, b"abc"))
    assert await answer.content.readexactly(8) == frame(STDOUT, b"ABC")
    more.put_nowait(frame(STDIN, b"d")[:4])
    more.put_nowait(frame(STDIN, b"d")[4:] + frame(END))
    assert await answer.content.readexactly(6) == frame(STDOUT, b"D")
    assert (await answer.content.readexactly(5))[0] == EXIT
    more.put_nowait(b"")
    answer.close()


async def test_a_slow_client_gets_all_that_was_written_before_the_end(
    call: Call, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames_module, "LINGER", 0.02)
    begun, reads = asyncio.Event(), asyncio.Event()
    write = web.StreamResponse.write

    async def slow(response: web.StreamResponse, data: Any) -> None:
        begun.set()
        await reads.wait()
        await write(response, data)

    async def work(_name: str, _spec: Any, fds: list[int], _event: Any) -> dict[str, Any]:
        os.write(fds[0], b"all of it")
        await begun.wait()
        asyncio.get_running_loop().call_later(0.2, reads.set)  # long after the silence that ends it
        return {"exit_code": 0, "signal": 0, "reason": "exit", "message": ""}

    monkeypatch.setattr(web.StreamResponse, "write", slow)
    job(work)
    answer = await call("POST", "/v1/run", data=SPEC_FRAME + frame(END), headers=HEADERS)
    assert [kind for kind, _ in frames(await answer.read())] == [STDOUT, EXIT]


async def test_a_signal_ends_the_process(call: Call, job: Any) -> None:
    ended = asyncio.Event()

    async def work(*_: Any) -> dict[str, Any]:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return {}

    job(work)
    data = SPEC_FRAME + frame(SIGNAL, b"SIGTERM") + frame(END)
    answer = await call("POST", "/v1/run", data=data, headers=HEADERS)
    assert json.loads(frames(await answer.read())[-1][1]) == {"signal": 15}
    assert ended.is_set()


async def test_a_client_that_leaves_ends_the_process(call: Call, job: Any, served: Services) -> None:
    ended = asyncio.Event()

    async def work(_name: str, _spec: Any, fds: list[int], _event: Any) -> dict[str, Any]:
        os.write(fds[0], b"x")
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return {}

    job(work)
    answer = await call("POST", "/v1/run", data=SPEC_FRAME + frame(END), headers=HEADERS)
    await answer.content.readexactly(6)
    answer.close()
    assert await asyncio.wait_for(ended.wait(), PATIENCE)


async def test_what_the_sandbox_refuses_is_an_error_frame(call: Call, job: Any) -> None:
    async def work(*_: Any) -> dict[str, Any]:
        raise Unsupported("no overlay here")

    job(work)
    answer = await call("POST", "/v1/run", data=SPEC_FRAME, headers=HEADERS)
    kind, data = frames(await answer.read())[-1]
    assert (kind, json.loads(data)["code"]) == (ERROR, "unsupported")


@pytest.mark.parametrize(
    "data",
    [b"", b"\0\0", frame(STDIN, b"x"), frame(SPEC, b"{"), frame(SPEC, b'{"image": 3}'),
     frame(SPEC, b'{"imagee": "x"}'), b"\0\xff\xff\xff\xff"],
)
async def test_a_first_frame_that_is_none_is_refused(call: Call, data: bytes) -> None:
    assert (await call("POST", "/v1/run", data=data, headers=HEADERS)).status == 400


async def test_a_terminal_is_passed_by_event(call: Call, job: Any) -> None:
    import pty

    async def work(_name: str, spec: Any, fds: list[int], on_event: Any) -> dict[str, Any]:
        assert spec["tty"]
        assert fds == []
        master, slave = pty.openpty()
        on_event({"event": "tty"}, [master])
        await eventually("its size", lambda: os.get_terminal_size(slave).columns)
        size = os.get_terminal_size(slave)
        os.write(slave, f"{size.lines}x{size.columns}".encode())
        os.close(slave)
        return {"exit_code": 0}

    job(work)
    spec = frame(SPEC, json.dumps({"image": "i", "tty": True, "rows": 30, "columns": 99}).encode())
    answer = await call("POST", "/v1/run", data=spec, headers=HEADERS)
    found = frames(await answer.read())
    assert found[0] == (STDOUT, b"30x99")
    assert isinstance(answer, aiohttp.ClientResponse)
