"""Credentials as people have them: ``~/.docker/config.json``, ``auth.json`` and credential helpers.

Read anew for each lookup, so that a login elsewhere counts at once.  Files are written whole, 0600, and
keep what they hold beside the credentials.  Source: docker login's config file format, containers-auth.json(5),
docker-credential-helpers' protocol.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ocibuildd.errors import InvalidArgument, Unavailable
from ocibuildd.model.reference import DEFAULT_DOMAIN
from ocibuildd.model.request import RegistryAuth

HUB_KEY = "https://index.docker.io/v1/"
"""The name that docker.io has in Docker's config.json."""
MAX_FILE = 4 << 20
MAX_HELPER_OUTPUT = 1 << 20
HELPER_TIMEOUT = 30.0
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}\Z")
_NOT_THERE = ("credentials not found", "not found in native keychain", "no credentials")
TOKEN_USER = "<token>"  # noqa: S105 - what a helper puts in place of a user name for identity tokens
_HUB_NAMES = frozenset({DEFAULT_DOMAIN, "index.docker.io", "registry-1.docker.io"})


def normalise(key: str) -> str:
    """``https://host[:port]/v1/`` and the like → ``host[:port]``; a ``host/namespace`` key keeps its path."""
    text = key.partition("://")[2] or key
    host, _, path = text.strip("/").partition("/")
    if host in _HUB_NAMES:
        return DEFAULT_DOMAIN if path in ("", "v1", "v2") else f"{DEFAULT_DOMAIN}/{path}"
    return host if path in ("", "v1", "v2") else f"{host}/{path}"


def select(
    auths: Mapping[str, RegistryAuth], domain: str, repository: str = ""
) -> RegistryAuth | None:
    """The entry that fits best: the longest ``domain/namespace…`` key, then ``domain`` itself."""
    by_name = {normalise(key): auth for key, auth in auths.items()}
    parts = repository.split("/") if repository else []
    for count in range(len(parts), -1, -1):
        found = by_name.get("/".join([domain, *parts[:count]]))
        if found is not None:
            return found
    return None


def decode_entry(entry: object) -> RegistryAuth | None:
    """One value of ``auths``; None where it holds no secret (a credential store has it)."""
    if not isinstance(entry, dict):
        return None
    username, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    if entry.get("auth"):
        try:
            text = base64.b64decode(str(entry["auth"]), validate=True).decode()
        except (binascii.Error, ValueError):
            raise InvalidArgument("credentials file: an auth entry is not base64") from None
        username, _, password = text.partition(":")
        password = password.rstrip("\0")
    identity = str(entry.get("identitytoken") or "")
    registry_token = str(entry.get("registrytoken") or "")
    if not (username or identity or registry_token):
        return None
    return RegistryAuth(username, password, identity, registry_token)


@dataclass(frozen=True, slots=True)
class CredentialsFile:
    """One file as read."""

    path: Path
    body: dict[str, Any]

    def auths(self) -> Mapping[str, Any]:
        found = self.body.get("auths")
        return found if isinstance(found, dict) else {}

    def helper(self, domain: str) -> str:
        """The credential helper for a registry: its own, or the store for all; "" = none."""
        helpers = self.body.get("credHelpers")
        if isinstance(helpers, dict):
            for key, name in helpers.items():
                if normalise(str(key)) == domain and name:
                    return _helper_name(name)
        store = self.body.get("credsStore")
        return _helper_name(store) if store else ""


def _helper_name(name: object) -> str:
    # The name becomes part of a program's name: nothing that could be a path or an option.
    if not isinstance(name, str) or not _HELPER.match(name):
        raise InvalidArgument(
            f"credentials file: {str(name)[:100]!r} is no credential helper's name"
        )
    return name


class Credentials:
    """Where the daemon's user keeps credentials.

    environ: DOCKER_CONFIG, REGISTRY_AUTH_FILE, XDG_RUNTIME_DIR, XDG_CONFIG_HOME, HOME, PATH.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ

    @property
    def docker_config(self) -> Path:
        """Docker's file: where ``login`` writes."""
        directory = self._environ.get("DOCKER_CONFIG") or os.path.join(self._home, ".docker")
        return Path(directory, "config.json")

    @property
    def _home(self) -> str:
        return self._environ.get("HOME") or "/nonexistent"

    def paths(self) -> list[Path]:
        """All files, the one that wins first."""
        found = [self.docker_config]
        if explicit := self._environ.get("REGISTRY_AUTH_FILE"):
            found.insert(0, Path(explicit))
        if runtime := self._environ.get("XDG_RUNTIME_DIR"):
            found.append(Path(runtime, "containers/auth.json"))
        config = self._environ.get("XDG_CONFIG_HOME") or os.path.join(self._home, ".config")
        found.append(Path(config, "containers/auth.json"))
        return found

    def _files(self) -> Iterator[CredentialsFile]:
        for path in self.paths():
            body = read_file(path)
            if body is not None:
                yield CredentialsFile(path, body)

    async def get(self, domain: str, repository: str = "") -> RegistryAuth:
        """The credentials for a registry; an empty RegistryAuth where there are none.

        Raises InvalidArgument (a file that can't be read), Unavailable (a helper that fails).
        """
        for file in self._files():
            if name := file.helper(domain):
                found = await self._ask_helper(name, domain)
                if found is not None:
                    return found
            decoded = {key: decode_entry(entry) for key, entry in file.auths().items()}
            auths = {key: auth for key, auth in decoded.items() if auth is not None}
            chosen = select(auths, domain, repository)
            if chosen is not None:
                return chosen
        return RegistryAuth()

    async def all(self) -> dict[str, RegistryAuth]:
        """What the files themselves hold, by registry (helpers aren't asked)."""
        found: dict[str, RegistryAuth] = {}
        for file in self._files():
            for key, entry in file.auths().items():
                if (auth := decode_entry(entry)) is not None:
                    found.setdefault(normalise(key), auth)
        return found

    async def store(self, domain: str, auth: RegistryAuth) -> str:
        """Keep credentials (login).  Returns where: a path, or a helper's name."""
        path = self.docker_config
        file = CredentialsFile(path, read_file(path) or {})
        key = _server(domain)
        if name := file.helper(domain):
            secret = {
                "ServerURL": key,
                "Username": TOKEN_USER if auth.identity_token else auth.username,
                "Secret": auth.identity_token or auth.password,
            }
            await self._run_helper(name, "store", json.dumps(secret).encode())
            entry: dict[str, str] = {}
        else:
            pair = f"{auth.username}:{'' if auth.identity_token else auth.password}"
            entry = {"auth": base64.b64encode(pair.encode()).decode()}
            if auth.identity_token:
                entry["identitytoken"] = auth.identity_token
        auths = {k: v for k, v in file.auths().items() if normalise(k) != domain}
        write_file(path, {**file.body, "auths": {**auths, key: entry}})
        return f"docker-credential-{name}" if name else str(path)

    async def erase(self, domain: str) -> bool:
        """Forget credentials everywhere (logout).  False: there were none."""
        gone = False
        for file in list(self._files()):
            if name := file.helper(domain):
                gone |= await self._ask_helper(name, domain) is not None
                await self._run_helper(name, "erase", _server(domain).encode())
            rest = {k: v for k, v in file.auths().items() if normalise(k) != domain}
            if len(rest) != len(file.auths()):
                write_file(file.path, {**file.body, "auths": rest})
                gone = True
        return gone

    # --- helpers ----------------------------------------------------------------------------

    async def _ask_helper(self, name: str, domain: str) -> RegistryAuth | None:
        answer = await self._run_helper(name, "get", _server(domain).encode())
        if answer is None:
            return None
        try:
            value = json.loads(answer)
            username, secret = str(value["Username"]), str(value["Secret"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise Unavailable(
                f"docker-credential-{name} get: not the JSON that was expected"
            ) from None
        if username == TOKEN_USER:
            return RegistryAuth(identity_token=secret)
        return RegistryAuth(username, secret) if username or secret else None

    async def _run_helper(self, name: str, verb: str, data: bytes) -> bytes | None:
        """What the helper printed; None where it has no such credentials.  Raises Unavailable."""
        program = f"docker-credential-{name}"
        try:
            process = await asyncio.create_subprocess_exec(
                program, verb, env=dict(self._environ), stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
                limit=MAX_HELPER_OUTPUT,
            )  # fmt: skip
        except OSError as error:
            raise Unavailable(
                f"{program}: {error.strerror or error}",
                hint="install it, or remove it from the credentials file",
            ) from None
        try:
            async with asyncio.timeout(HELPER_TIMEOUT):
                output = await _converse(process, data)
        except TimeoutError:
            raise Unavailable(
                f"{program} {verb}: no answer in {HELPER_TIMEOUT:.0f} seconds"
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            said = output[:300].decode("utf-8", "replace").strip()
            if any(words in said.lower() for words in _NOT_THERE):
                return None
            raise Unavailable(f"{program} {verb}: exit status {process.returncode}: {said}")
        return output


async def _converse(process: asyncio.subprocess.Process, data: bytes) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(data + b"\n")
        process.stdin.close()
    except (BrokenPipeError, ConnectionResetError):
        pass
    output = await process.stdout.read(MAX_HELPER_OUTPUT)
    while len(output) < MAX_HELPER_OUTPUT:
        more = await process.stdout.read(MAX_HELPER_OUTPUT - len(output))
        if not more:
            break
        output += more
    await process.wait()
    return output


def _server(domain: str) -> str:
    return HUB_KEY if domain == DEFAULT_DOMAIN else domain


def read_file(path: Path) -> dict[str, Any] | None:
    """A credentials file; None where there is none.  Raises InvalidArgument."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except OSError as error:
        raise InvalidArgument(f"credentials file {path}: {error.strerror}") from None
    if len(data) > MAX_FILE:
        raise InvalidArgument(f"credentials file {path}: larger than {MAX_FILE:,} bytes")
    try:
        body = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise InvalidArgument(f"credentials file {path}: expected a JSON object")
    return body


def write_file(path: Path, body: dict[str, Any]) -> None:
    """Replace a credentials file as a whole; the link, where it is one, stays."""
    target = path.resolve()
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=target.parent, prefix=".credentials-")  # 0600
    try:
        with os.fdopen(fd, "w") as file:
            json.dump(body, file, indent="\t")
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
