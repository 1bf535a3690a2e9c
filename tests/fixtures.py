"""What several suites stand on: base file systems made on the spot, a real daemon, a real registry."""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from patience import PATIENCE, until

BIN = Path(sys.executable).parent
# Whoever started us in the background had us ignore it, and so would every client that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def remove_tree(path: Path) -> None:
    """Take a directory away, also where subordinate ids own what is in it."""
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        subprocess.run(
            [
                "unshare",
                "--map-root-user",
                "--map-auto",
                "sh",
                "-c",
                'chmod -R u+rwx "$1"; rm -rf "$1"',
                "sh",
                str(path),
            ],
            check=False,
            capture_output=True,
        )
    assert not path.exists(), f"{path} could not be removed"


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A private directory for a daemon's state; what subordinate ids own in it goes too."""
    path = Path(tempfile.mkdtemp(prefix="ocibuildd-state-"))
    yield path
    remove_tree(path)


def _add(
    archive: tarfile.TarFile,
    name: str,
    *,
    mode: int,
    kind: bytes,
    data: bytes = b"",
    link: str = "",
) -> None:
    info = tarfile.TarInfo(name)
    info.mode, info.type, info.linkname, info.size = mode, kind, link, len(data)
    archive.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="session")
def busybox_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system: Debian's static busybox, its applets, passwd and group."""
    binary = shutil.which("busybox")
    assert binary, "busybox-static is not installed"
    path = tmp_path_factory.mktemp("bases") / "busybox.tar"
    applets = subprocess.run(
        [binary, "--list"], capture_output=True, text=True, check=True
    ).stdout.split()
    with tarfile.open(path, "w") as archive:
        for name, mode in (
            ("bin", 0o755),
            ("etc", 0o755),
            ("root", 0o700),
            ("tmp", 0o1777),
            ("home", 0o755),
            ("dev", 0o755),
            ("proc", 0o555),
            ("sys", 0o555),
        ):
            _add(archive, name, mode=mode, kind=tarfile.DIRTYPE)
        _add(
            archive, "bin/busybox", mode=0o755, kind=tarfile.REGTYPE, data=Path(binary).read_bytes()
        )
        for applet in applets:
            if applet != "busybox":
                _add(archive, f"bin/{applet}", mode=0o777, kind=tarfile.SYMTYPE, link="busybox")
        passwd = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\napp:x:1000:1000::/home:/bin/sh\n"
        _add(archive, "etc/passwd", mode=0o644, kind=tarfile.REGTYPE, data=passwd)
        group = b"root:x:0:\nnogroup:x:65534:\napp:x:1000:\nextra:x:2000:app\n"
        _add(archive, "etc/group", mode=0o644, kind=tarfile.REGTYPE, data=group)
    return path


@pytest.fixture(scope="session")
def debian_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minimal Debian bookworm, where the package registry answers; else the test is skipped."""
    if not shutil.which("mmdebstrap"):
        pytest.skip("mmdebstrap is not installed")
    path = tmp_path_factory.mktemp("bases") / "debian.tar"
    made = subprocess.run(
        [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            "--include=ca-certificates",
            "bookworm",
            str(path),
        ],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"no Debian base can be made here: {made.stderr[-300:]}")
    return path


def tool(*args: object, cwd: Path) -> str:
    """What another tool says, with its home and its files under ``cwd``; skips where it isn't installed."""
    if not shutil.which(str(args[0])):
        pytest.skip(f"{args[0]} is not installed")
    home = dict.fromkeys(("HOME", "XDG_RUNTIME_DIR", "TMPDIR"), str(cwd))
    done = subprocess.run(
        [str(arg) for arg in args], capture_output=True, text=True, cwd=cwd, check=False,
        env={"PATH": os.environ["PATH"], **home},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@contextmanager
def podman(cwd: Path) -> Iterator[Callable[..., str]]:
    """podman with a store of its own.  Without root it leaves a process that holds its namespaces: that ends too."""
    if not shutil.which("podman"):
        pytest.skip("podman is not installed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as short:  # podman wants short paths
        store = ["--root", f"{short}/p", "--runroot", f"{short}/r", "--storage-driver", "vfs"]
        run = partial(tool, "podman", *store, cwd=cwd)
        try:
            yield run
        finally:
            run("system", "migrate")


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@dataclass
class Daemon:
    """A running ocibuildd with a state of its own, and the CLI pointed at it."""

    root: Path
    env: dict[str, str]
    config: str = ""
    process: subprocess.Popen[bytes] | None = None
    args: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    """What starts it, in place of starting it directly."""

    @property
    def socket(self) -> Path:
        return self.root / "run" / "d.sock"

    @property
    def log(self) -> str:
        return (self.root / "daemon.log").read_text(errors="replace")

    def start(self) -> None:
        """Start it and wait until it answers."""
        (self.root / "run").mkdir(exist_ok=True, mode=0o700)
        config = self.root / "ocibuildd.toml"
        config.write_text(self.config)
        with (self.root / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self.before,
                    str(BIN / "ocibuildd"),
                    "--config",
                    str(config),
                    "--state-dir",
                    str(self.root / "state"),
                    "--socket",
                    str(self.socket),
                    *self.args,
                ],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until("the daemon's answer", self._answers)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the daemon ended at once: {self.log[-3000:]}"
        return self("version").code == 0

    def stop(self, how: int = signal.SIGTERM) -> None:
        """End it; SIGKILL for the cruel way."""
        if self.process is None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(5)
            raise AssertionError(
                f"the daemon did not end on signal {how}: {self.log[-3000:]}"
            ) from None
        finally:
            self.process = None

    def __call__(
        self,
        *args: str | Path,
        stdin: bytes | None = None,
        cwd: Path | None = None,
        timeout: float = 120,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Run ``ocibuild`` with some arguments."""
        done = subprocess.run(
            [str(BIN / "ocibuild"), *map(str, args)],
            env={**self.env, **(env or {})},
            cwd=cwd,
            timeout=timeout,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            check=False,
        )
        return Result(
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )

    def ok(
        self,
        *args: str | Path,
        stdin: bytes | None = None,
        cwd: Path | None = None,
        timeout: float = 120,
    ) -> Result:
        """Run ``ocibuild`` and insist on success."""
        done = self(*args, stdin=stdin, cwd=cwd, timeout=timeout)
        assert done.code == 0, (
            f"ocibuild {' '.join(map(str, args))}: exit {done.code}\n{done.text[-4000:]}\n--- daemon:\n{self.log[-2000:]}"
        )
        return done

    def background(self, *args: str | Path) -> subprocess.Popen[str]:
        """Start ``ocibuild`` and leave it running."""
        return subprocess.Popen(
            [str(BIN / "ocibuild"), *map(str, args)],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


MADE: list[Daemon] = []
"""Daemons that ``make_daemon`` made and nobody has ended yet."""


def end(daemons: list[Daemon]) -> None:
    """End daemons and take their files away; all of them, then fail if one of them didn't end well."""
    failed = []
    for daemon in daemons:
        try:
            daemon.stop()
        except AssertionError as error:
            failed.append(str(error))
        remove_tree(daemon.root)
        MADE.remove(daemon)
    assert not failed, failed


@pytest.fixture(autouse=True)
def end_daemons() -> Iterator[None]:
    """A daemon that a test made for itself ends with the test."""
    before = len(MADE)
    yield
    end(MADE[before:])


@pytest.fixture(scope="session")
def make_daemon() -> Iterator[Callable[..., Daemon]]:
    """Daemons with a configuration of the test's own; each ends, and its files go, with the test, or with
    the fixture of a wider scope that made it."""

    def make(config: str = "", *, start: bool = True, **env: str) -> Daemon:
        root = Path(tempfile.mkdtemp(prefix="ocibuildd-test-"))
        root.chmod(0o700)
        (root / "home").mkdir()
        clean = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(root / "home"),
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "XDG_RUNTIME_DIR": str(root / "run"),
            "OCIBUILD_HOST": f"unix://{root}/run/d.sock",
            "COLUMNS": "120",
            **env,
        }
        daemon = Daemon(root, clean, config)
        MADE.append(daemon)
        if start:
            daemon.start()
        return daemon

    yield make
    end(list(MADE))


@pytest.fixture(scope="session")
def daemon(make_daemon: Callable[..., Daemon], busybox_tar: Path) -> Daemon:
    """One daemon for the tests that don't need their own; it has the image ``busybox``."""
    started = make_daemon()
    started.ok(
        "import", "--change", 'CMD ["sh"]', "--change", "ENV PATH=/bin", busybox_tar, "busybox"
    )
    return started


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def accepts(port: int) -> bool:
    """Whether anybody listens there, on loopback."""
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
    except OSError:
        return False
    return True


def answers(port: int) -> bool:
    """Whether a registry serves there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=PATIENCE):
            return True
    except OSError:
        return False


@contextmanager
def serve_registry(root: Path) -> Iterator[str]:
    """Debian's docker-registry on loopback, with its files in ``root``: ``127.0.0.1:PORT``."""
    port = free_port()
    config = root / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {root}/data}}, delete: {{enabled: true}}}}\n"
        f'http: {{addr: "127.0.0.1:{port}"}}\n'
    )
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(config)], stdout=log, stderr=log
        )
    try:
        until("the registry's answer", lambda: process.poll() is not None or answers(port))
        assert process.poll() is None, (root / "log").read_text()
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(PATIENCE)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that the tests of a session share: ``127.0.0.1:PORT``."""
    with serve_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., Path]:
    """Write a build context: ``context(Dockerfile="…", **{"a/b.txt": "…"})``."""

    def write(**files: str | bytes) -> Path:
        for name, data in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return tmp_path

    return write
