"""A running nsd over a busybox tree, and a way to run commands in it: for all suites that need a sandbox."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ocibuildd.sandbox import launch

FILES = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n1000:x:0:0::/:/bin/sh\n",
    "etc/group": b"root:x:0:\nadm:x:4:app\napp:x:1000:\nwheel:x:10:root,app\n",
}
DIRECTORIES = ("bin", "dev", "etc", "home/app", "proc", "root", "sys", "tmp")


def busybox_layer() -> bytes:
    """The tar of a root file system: static busybox, passwd and group."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in DIRECTORIES:
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(info)
        binary = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
        for name, data in {"bin/busybox": binary, **FILES}.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755 if name.startswith("bin/") else 0o644
            tar.addfile(info, io.BytesIO(data))
        listed = subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True)
        for applet in listed.stdout.split():
            info = tarfile.TarInfo(f"bin/{applet}")
            info.type, info.linkname = tarfile.SYMTYPE, "busybox"
            if applet != "busybox":
                tar.addfile(info)
    return buffer.getvalue()


@dataclass
class Result:
    """What a command gave: its outcome, its output (both streams)."""

    outcome: dict[str, Any]
    output: str

    @property
    def code(self) -> int:
        return int(self.outcome["exit_code"])

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()


@dataclass
class Box:
    """nsd and its state, with a tree called "base"."""

    client: launch.NsdClient
    state: Path
    trees: int = 0
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    async def apply(self, tree: str, data: bytes, lowers: tuple[str, ...] = ()) -> dict[str, Any]:
        """Make a tree of a tar."""
        fd = os.memfd_create("layer")
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        try:
            args = {"tree": tree, "lowers": list(lowers), "expect_diff_id": "", "limits": {}}
            return await self.client.call("apply", args, [fd])
        finally:
            os.close(fd)

    async def tree_of(self, tree: str, files: Mapping[str, bytes | str]) -> None:
        """Make a tree of files (bytes), symlinks (text) and directories (names that end in /)."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(name.rstrip("/"))
                info.mode = 0o755
                if name.endswith("/"):
                    info.type = tarfile.DIRTYPE
                elif isinstance(data, str):
                    info.type, info.linkname = tarfile.SYMTYPE, data
                else:
                    info.size = len(data)
                tar.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
        await self.apply(tree, buffer.getvalue())

    def spec(self, *args: str, **changes: Any) -> dict[str, Any]:
        """A RunSpec for a command."""
        spec: dict[str, Any] = {
            "lowers": ["base"], "tree": "", "args": list(args), "env": [["PATH", "/bin"]], "cwd": "/",
            "user": "", "hostname": "", "network": "none", "security": "sandbox", "mounts": [],
            "hosts": [], "dns": {}, "limits": {}, "tty": False, "no_new_privileges": False,
            "step": "test",
        }
        return spec | changes

    async def run(self, *args: str, fds: tuple[int, ...] = (), **changes: Any) -> Result:
        """Run a command to its end."""
        output = os.memfd_create("output")
        try:
            spec = self.spec(*args, **changes)
            outcome = await self.client.call("run", spec, [output, output, *fds])
            os.lseek(output, 0, os.SEEK_SET)
            with open(output, "rb", closefd=False) as file:
                return Result(outcome, file.read().decode(errors="replace"))
        finally:
            os.close(output)

    async def sh(self, script: str, **changes: Any) -> Result:
        """Run a shell script."""
        return await self.run("/bin/sh", "-c", script, **changes)

    def new_tree(self) -> str:
        """A name for a tree that isn't there yet."""
        self.trees += 1
        return f"tree{self.trees}"

    def upper(self, tree: str) -> Path:
        """The files of a tree."""
        return self.state / "trees" / tree / "fs"


async def opened(state: Path, **config: Any) -> Box:
    """A box with its base tree; ``config`` as :func:`launch.start` takes it."""
    client = await launch.start(state, config={"network": False, "keep_ready": False} | config)
    box = Box(client, state)
    try:
        await box.apply("base", busybox_layer())
    except BaseException:
        await client.close()
        raise
    return box
