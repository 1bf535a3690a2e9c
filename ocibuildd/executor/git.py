"""Git checkouts, by the host's git with everything that a repository could make it do switched off.

No hooks, no filters, no configuration but ours, no transport but http(s), ssh and git, no prompt; names that
could be options never get that far (``dockerfile.gitref``) and are kept apart by ``--`` all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import signal
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import BuildError, Corrupt, InvalidArgument, NotFound, Unsupported
from ..model.graph import GitSource
from ..ports import Emit
from ..runtime import in_thread, until_done
from ..syscalls import open_in_root
from .source import Directory, git_authorization

TIMEOUT = 600.0
"""Seconds that one git command may take."""
MAX_OUTPUT = 1 << 20
DEPTH = "--depth=1"
FULL_COMMIT = re.compile(r"[0-9a-f]{40}\Z|[0-9a-f]{64}\Z")
SETTINGS = {
    "core.hooksPath": "/dev/null", "core.fsmonitor": "false", "core.symlinks": "true",
    "core.protectHFS": "true", "core.protectNTFS": "true", "core.autocrlf": "false",
    "protocol.allow": "never", "protocol.http.allow": "always", "protocol.https.allow": "always",
    "protocol.git.allow": "always", "protocol.ssh.allow": "always", "credential.helper": "",
    "submodule.recurse": "false", "gc.auto": "0", "advice.detachedHead": "false",
    "http.followRedirects": "initial", "transfer.fsckObjects": "true", "init.defaultBranch": "main",
    "filter.lfs.required": "false", "filter.lfs.smudge": "cat", "filter.lfs.process": "",
}


@dataclass(frozen=True, slots=True)
class Checkout:
    """A working tree.  ``identity``: what it is (commit and options).  time: the commit's, in seconds."""

    directory: Directory
    identity: str
    commit: str
    time: int


class _Git:
    """git in one repository."""

    def __init__(self, root: Path, remote: str, header: str, agent: str):
        self.root = root
        settings = dict(SETTINGS)
        if header:
            parts = urlsplit(remote)
            settings[f"http.{parts.scheme}://{parts.netloc}/.extraheader"] = f"Authorization: {header}"
        ssh = "ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=accept-new"
        self.env = {
            "PATH": os.environ.get("PATH", os.defpath), "HOME": "/dev/null", "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_TERMINAL_PROMPT": "0",
            "GIT_PROTOCOL_FROM_USER": "0", "GIT_ASKPASS": "/bin/false", "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_SSH_COMMAND": f"{ssh} -o UserKnownHostsFile={root}/.known_hosts",
            "GIT_CONFIG_COUNT": str(len(settings)),
        }
        for number, (key, value) in enumerate(settings.items()):
            self.env[f"GIT_CONFIG_KEY_{number}"] = key
            self.env[f"GIT_CONFIG_VALUE_{number}"] = value
        for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
            for spelt in (name, name.upper()):
                if spelt in os.environ:
                    self.env[spelt] = os.environ[spelt]
        if agent:
            self.env["SSH_AUTH_SOCK"] = agent

    async def run(self, *args: str, check: bool = True) -> tuple[int, str]:
        """(exit code, stdout); raises BuildError with git's last words where it fails and may not."""
        try:
            process = await asyncio.create_subprocess_exec(
                "git", *args, cwd=self.root, env=self.env, stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True,
            )
        except FileNotFoundError:
            raise Unsupported("git: not installed on this host", hint="apt-get install git") from None
        try:
            async with asyncio.timeout(TIMEOUT):
                out, err = await process.communicate()
        except TimeoutError:
            raise BuildError(f"git {args[0]}: took longer than {TIMEOUT:.0f} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await until_done(asyncio.ensure_future(process.wait()))
        code = process.returncode or 0
        if code and DEPTH in args and b"shallow" in err:
            # A server of plain files can only give everything.
            return await self.run(*(arg for arg in args if arg != DEPTH), check=check)
        if code and check:
            raise BuildError(f"git {args[0]}: {_cause(err) or f'exit code {code}'}")
        return code, out[:MAX_OUTPUT].decode("utf-8", "surrogateescape").strip()


def _cause(err: bytes) -> str:
    """The line of git's standard error that says why: ssh's own, else the last that is fatal (advice may follow)."""
    # "fatal: unable to connect to HOST:" goes on in the next line.
    err = re.sub(rb":[ \t]*\r?\n(?=\S+\[\d+: )", b": ", err)
    lines = [line.strip() for line in err[-2000:].decode("utf-8", "replace").splitlines() if line.strip()]
    ssh = [line for line in lines if line.startswith(("ssh: ", "Host key ")) or "Permission denied (" in line]
    fatal = [line for line in lines if line.startswith("fatal: ")]
    return (ssh or fatal or lines or [""])[-1]


async def checkout(
    op: GitSource, secrets: Mapping[str, bytes], scratch: Path, emit: Emit, agent: str = ""
) -> Checkout:
    """Fetch one commit and lay it out.  Raises BuildError, NotFound, Corrupt, InvalidArgument."""
    root = Path(tempfile.mkdtemp(prefix="git-", dir=scratch))
    try:
        return await _checkout(op, secrets, root, emit, agent)
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise


async def _checkout(
    op: GitSource, secrets: Mapping[str, bytes], root: Path, emit: Emit, agent: str
) -> Checkout:
    git = _Git(root, op.remote, git_authorization(op.remote, secrets).get("Authorization", ""), agent)
    emit("status", id="git", text=f"fetching {op.ref or 'HEAD'}")
    await git.run("init", "--quiet")
    await git.run("remote", "add", "origin", "--", op.remote)
    wanted = op.ref or "HEAD"
    code, _ = await git.run(
        "fetch", "--quiet", "--no-tags", DEPTH, "origin", "--", wanted, check=False
    )
    if code and FULL_COMMIT.match(wanted):  # the server gives out branches only
        await git.run("fetch", "--quiet", "--no-tags", "origin")
        await git.run("update-ref", "FETCH_HEAD", wanted)
    elif code:
        await git.run("fetch", "--quiet", DEPTH, "origin", "--", wanted)
    _, commit = await git.run("rev-parse", "--verify", "FETCH_HEAD^{commit}")
    if op.checksum and not commit.startswith(op.checksum):
        raise Corrupt(f"git {op.remote}: {wanted} is commit {commit}, expected {op.checksum}")
    await git.run("checkout", "--quiet", "--force", "--detach", commit)
    if op.submodules and (root / ".gitmodules").is_file():
        await git.run("submodule", "update", "--quiet", "--init", "--recursive", DEPTH)
    _, when = await git.run("show", "-s", "--format=%ct", commit)
    mtime = int(when) if op.mtime == "commit" else None
    await in_thread(_tidy, root, op.keep_git_dir, mtime)
    text = "\0".join([
        "git", commit, op.subdir, str(op.keep_git_dir), str(op.submodules), op.mtime, op.remote,
    ])
    identity = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    return Checkout(_open(root, op.subdir), identity, commit, int(when))


def _open(root: Path, subdir: str) -> Directory:
    """The tree, or the directory in it that is wanted; no link leads out of it."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    top = os.open(root, flags | os.O_CLOEXEC)
    try:
        fd = open_in_root(top, subdir or ".", flags)
    except FileNotFoundError:
        raise NotFound(f"git: no directory {subdir} in the checkout") from None
    except OSError as error:
        raise InvalidArgument(f"git: {subdir}: {os.strerror(error.errno or 0)}") from None
    finally:
        os.close(top)
    return Directory(fd, remote=True, temporary=root)


def _tidy(root: Path, keep_git_dir: bool, mtime: int | None) -> None:
    """Modes as git knows them (0644, 0755), whatever the daemon's umask; .git goes unless it is kept."""
    with contextlib.suppress(FileNotFoundError):
        (root / ".known_hosts").unlink()
    if not keep_git_dir:
        shutil.rmtree(root / ".git", ignore_errors=True)
    for parent, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = os.path.join(parent, name)
            info = os.lstat(path)
            if not keep_git_dir and name == ".git":
                continue
            if stat.S_ISDIR(info.st_mode):
                os.chmod(path, 0o755)  # noqa: S103
            elif stat.S_ISREG(info.st_mode):
                os.chmod(path, 0o755 if info.st_mode & 0o100 else 0o644)
            if mtime is not None:
                os.utime(path, (mtime, mtime), follow_symlinks=False)
