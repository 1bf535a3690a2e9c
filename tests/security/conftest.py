"""A sandbox to attack: one nsd for the session, images made on the spot, probes in Python and busybox."""

from __future__ import annotations

import asyncio
import functools
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import uuid
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SECRET_CANARY = "ocibuildd-canary-in-the-daemon-s-environment"
APPLETS = """
sh ls cat id mount umount true false ip wget nc unshare dd mkdir rmdir rm ln mv cp touch stat sleep ps kill
setsid nohup env pwd grep sed head tail wc chmod chown mknod mkfifo test find sync seq expr su truncate
"""
FILES_LEFT_OUT = {"test", "idlelib", "tkinter", "lib2to3", "ensurepip", "pydoc_data", "__pycache__",
                  "dist-packages", "site-packages", "turtledemo", "unittest", "distutils"}


@dataclass(frozen=True, slots=True)
class Result:
    """What a step said and how it ended."""

    out: str
    outcome: dict[str, Any]

    @property
    def code(self) -> int:
        return int(self.outcome["exit_code"])

    def json(self) -> Any:
        assert self.code == 0, (self.out, self.outcome)
        return json.loads(self.out.strip().splitlines()[-1])


def entry(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode = 0o755
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def layer(entries: Mapping[str, bytes | str | tarfile.TarInfo | None]) -> bytes:
    """A tar: bytes = a file, "->target" = a symlink, None = a directory, TarInfo = itself."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, what in entries.items():
            if isinstance(what, tarfile.TarInfo):
                tar.addfile(what)
            elif what is None:
                tar.addfile(entry(name, tarfile.DIRTYPE))
            elif isinstance(what, str):
                tar.addfile(entry(name, tarfile.SYMTYPE, linkname=what.removeprefix("->")))
            else:
                tar.addfile(entry(name, size=len(what)), io.BytesIO(what))
    return buffer.getvalue()


def _python_files() -> dict[Path, str]:
    """The interpreter, its libraries and what it imports, by their place in the image."""
    binary = Path(sys.executable).resolve()
    found = {binary: "usr/bin/python3"}
    library = Path(os.__file__).parent
    place = f"{sys.base_prefix.lstrip('/')}/lib/python{sys.version_info[0]}.{sys.version_info[1]}"
    for directory, names, files in os.walk(library):
        names[:] = [name for name in names if name not in FILES_LEFT_OUT and not name.startswith("config-")]
        for name in files:
            path = Path(directory, name)
            found[path] = f"{place}/{path.relative_to(library)}"
    extensions = [str(path) for path in found if path.suffix == ".so"]
    listing = subprocess.run(["ldd", binary, *extensions], capture_output=True, text=True, check=False).stdout
    for name in set(re.findall(r"(/\S+) \(0x", listing)):
        found[Path(name).resolve()] = name.lstrip("/")
    return found


@functools.cache
def base_layer() -> bytes:
    """busybox and Python, from this machine."""
    buffer = io.BytesIO()
    owned = functools.partial(_as_root)
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("bin", "etc", "tmp", "root", "usr", "usr/bin", "var", "home", "proc", "sys", "dev", "run"):
            tar.addfile(entry(name, tarfile.DIRTYPE, mode=0o1777 if name == "tmp" else 0o755))
        busybox = shutil.which("busybox") or "/bin/busybox"
        tar.add(os.path.realpath(busybox), "bin/busybox", filter=owned)
        for applet in APPLETS.split():
            tar.addfile(entry(f"bin/{applet}", tarfile.SYMTYPE, linkname="busybox"))
        for path, place in _python_files().items():
            tar.add(path, place, filter=owned)
        files = {
            "etc/passwd": b"root:x:0:0:r:/root:/bin/sh\nalice:x:1000:1000:a:/home:/bin/sh\n",
            "etc/group": b"root:x:0:\nalice:x:1000:\nwheel:x:10:alice\nextra:x:2000:bob,alice\n",
        }
        for name, data in files.items():
            tar.addfile(entry(name, size=len(data), mode=0o644), io.BytesIO(data))
    return buffer.getvalue()


def _as_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


class Box:
    """Synchronous hands on an nsd."""

    def __init__(self, state: Path, **config: Any):
        from ocibuildd.sandbox import launch

        self.state = state
        self.loop = asyncio.new_event_loop()
        self.client = self.wait(launch.start(state, config=config))
        self.base = self.image(base_layer())

    def wait(self, work: Coroutine[Any, Any, Any], timeout: float = 60) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, timeout))

    def call(self, job: str, args: Mapping[str, Any], fds: Sequence[int] = ()) -> Any:
        return self.wait(self.client.call(job, args, fds))

    def image(self, data: bytes, *, lowers: Sequence[str] = ()) -> str:
        """The tree id of an applied layer."""
        tree = "t" + uuid.uuid4().hex
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.seek(0)
            args = {"tree": tree, "lowers": list(lowers), "expect_diff_id": "", "limits": {}}
            self.call("apply", args, [file.fileno()])
        return tree

    def variant(self, entries: Mapping[str, Any]) -> list[str]:
        """A chain: the base image with further entries."""
        return [self.base, self.image(layer(entries), lowers=[self.base])]

    def spec(self, args: Sequence[str], **fields: Any) -> dict[str, Any]:
        spec = {
            "lowers": [self.base], "tree": "", "args": list(args), "env": [["PATH", "/usr/bin:/bin"]],
            "cwd": "/", "user": "", "hostname": "box", "network": "none", "security": "sandbox",
            "mounts": [], "hosts": [], "dns": {}, "limits": {}, "tty": False, "no_new_privileges": False,
            "step": "test",
        }
        return {**spec, **fields}

    @staticmethod
    def base_layer() -> bytes:
        return base_layer()

    async def start(self, spec: Mapping[str, Any], job: str = "run") -> Result:
        with tempfile.TemporaryFile() as out:
            outcome = await self.client.call(job, spec, [out.fileno(), out.fileno()])
            out.seek(0)
            return Result(out.read().decode("utf-8", "replace"), outcome)

    def run(self, script: str, **fields: Any) -> Result:
        """A shell script in a sandbox."""
        return self.wait(self.start(self.spec(["/bin/sh", "-c", script], **fields)))

    def python(self, program: str, **fields: Any) -> Result:
        """A Python program in a sandbox."""
        args = ["/usr/bin/python3", "-S", "-B", "-c", PROBE + textwrap.dedent(program)]
        return self.wait(self.start(self.spec(args, **fields)))

    def parallel(self, *specs: Mapping[str, Any]) -> list[Result]:
        async def together() -> list[Result]:
            return list(await asyncio.gather(*(self.start(spec) for spec in specs)))

        return self.wait(together())

    def close(self) -> None:
        try:
            self.call("remove", {"paths": [str(self.state / name) for name in ("trees", "tmp", "cache", "empty")]})
        finally:
            self.wait(self.client.close())
            self.loop.close()


PROBE = """
import ctypes, errno, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def syscall(number, *args):
    ctypes.set_errno(0)
    result = libc.syscall(number, *[ctypes.c_ulong(arg) if isinstance(arg, int) else arg for arg in args])
    return errno.errorcode.get(ctypes.get_errno(), "OK") if result == -1 else "OK"
def attempt(work):
    try:
        return work()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
def tell(value):
    print(json.dumps(value))
"""


def refusal() -> str:
    """Why no sandbox can be had here."""
    if shutil.which("busybox") is None:
        return "busybox isn't installed"
    return ""


@pytest.fixture(scope="session")
def box() -> Iterator[Box]:
    if reason := refusal():
        pytest.skip(reason)
    os.environ["SECRET_CANARY"] = SECRET_CANARY
    directory = Path(tempfile.mkdtemp(prefix="ocibuildd-security-", dir="/var/tmp"))
    made = Box(directory)
    try:
        yield made
    finally:
        del os.environ["SECRET_CANARY"]
        made.close()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def canary() -> Iterator[Path]:
    """A directory of the host that anybody may write to, and that nobody of an image may reach."""
    directory = Path(tempfile.mkdtemp(prefix="canary-", dir="/var/tmp"))
    directory.chmod(0o777)
    (directory / "file").write_text("untouched")
    (directory / "file").chmod(0o666)
    try:
        yield directory
        left = {path.name for path in directory.rglob("*")}
        assert left == {"file"}, f"the host's directory was written to: {left}"
        assert (directory / "file").read_text() == "untouched"
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool
