"""Registry credentials where docker and podman keep them, and their credential helpers.

Read: ``$REGISTRY_AUTH_FILE``, ``$DOCKER_CONFIG/config.json`` (``~/.docker``),
``$XDG_RUNTIME_DIR/containers/auth.json``, ``~/.config/containers/auth.json``.  Written: the first of
the two that docker uses, or the helper that it names.
"""

from __future__ import annotations

import os

from .errors import ClientError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from .types import Auth

HUB = "docker.io"
HUB_KEY = "https://index.docker.io/v1/"
_HUB_NAMES = frozenset({HUB, HUB_KEY, "index.docker.io", "registry-1.docker.io"})
MAX_FILE = 4 << 20
HELPER_TIMEOUT = 30
TOKEN_USER = "<token>"  # noqa: S105
"""The user name under which helpers keep identity tokens."""


def config_path() -> str:
    """docker's config.json."""
    directory = os.environ.get("DOCKER_CONFIG")
    return (directory or (os.environ.get("HOME") or "/") + "/.docker") + "/config.json"


def _paths() -> list[str]:
    found = [config_path()]
    if explicit := os.environ.get("REGISTRY_AUTH_FILE"):
        found.insert(0, explicit)
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        found.append(runtime + "/containers/auth.json")
    home = os.environ.get("HOME") or "/"
    config = os.environ.get("XDG_CONFIG_HOME") or home + "/.config"
    return [*found, config + "/containers/auth.json"]


def _read(path: str) -> dict[str, Any]:
    """A file's JSON object; {} where there is none.  Raises ClientError when it is damaged."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE)
    except OSError:
        return {}
    from .jsonlite import loads

    try:
        found = loads(data or b"{}")
    except ValueError as error:
        raise ClientError(f"{path}: {error}", "mend or remove the file") from None
    return found if isinstance(found, dict) else {}


def host_of(reference: str) -> str:
    """The registry host of an image name or of a registry's address."""
    name = reference.removeprefix("https://").removeprefix("http://")
    first, slash, _ = name.partition("/")
    if reference in _HUB_NAMES or first in _HUB_NAMES:
        return HUB
    if "://" in reference:
        return first
    is_host = slash and ("." in first or ":" in first or first == "localhost")
    return first if is_host else HUB


def normal_key(key: str) -> str:
    """A key of ``auths`` as the host that it is for."""
    if key in _HUB_NAMES:
        return HUB
    host = key.removeprefix("https://").removeprefix("http://").rstrip("/")
    for tail in ("/v1", "/v2"):
        host = host.removesuffix(tail)
    return HUB if host in _HUB_NAMES else host


def _entry(entry: object) -> Auth:
    """One value of ``auths``: {"auth": base64(user:password), "identitytoken": …}."""
    if not isinstance(entry, dict):
        return {}
    auth: Auth = {}
    packed = entry.get("auth")
    if isinstance(packed, str) and packed:
        import binascii

        try:
            text = binascii.a2b_base64(packed.encode()).decode()
        except (ValueError, binascii.Error):
            text = ""
        user, _, password = text.rstrip("\0").partition(":")
        auth = {"username": user, "password": password}
    elif isinstance(entry.get("username"), str):
        auth = {"username": entry["username"], "password": str(entry.get("password", ""))}
    if isinstance(entry.get("identitytoken"), str) and entry["identitytoken"]:
        auth["identity_token"] = entry["identitytoken"]
    if isinstance(entry.get("registrytoken"), str) and entry["registrytoken"]:
        auth["registry_token"] = entry["registrytoken"]
    return {key: value for key, value in auth.items() if value}  # type: ignore[return-value]


def all_credentials() -> dict[str, Auth]:
    """What the files say themselves, by host; helpers are asked only for what is needed."""
    found: dict[str, Auth] = {}
    for path in _paths():
        auths = _read(path).get("auths")
        for key, entry in auths.items() if isinstance(auths, dict) else ():
            if (auth := _entry(entry)) and isinstance(key, str):
                found.setdefault(normal_key(key), auth)
    return found


def credentials_for(reference: str) -> Auth | None:
    """Credentials for the registry of an image name: a helper's, or the files'."""
    host = host_of(reference)
    for path in _paths():
        if helper := _helper(_read(path), host):
            answer = _run_helper(helper, "get", HUB_KEY if host == HUB else host)
            if answer is None:
                continue
            import json

            try:
                body = json.loads(answer)
                user, secret = str(body["Username"]), str(body["Secret"])
            except (ValueError, KeyError, TypeError):
                raise ClientError(f"docker-credential-{helper} get: no credentials") from None
            if user == TOKEN_USER:
                return {"identity_token": secret}
            return {"username": user, "password": secret}
    return all_credentials().get(host)


def _helper(config: Mapping[str, Any], host: str) -> str:
    """The helper's name for a host, "" = none."""
    helpers = config.get("credHelpers")
    if isinstance(helpers, dict):
        for key, name in helpers.items():
            if isinstance(name, str) and normal_key(str(key)) == host:
                return name
    store = config.get("credsStore")
    return store if isinstance(store, str) else ""


def _run_helper(name: str, action: str, stdin: str) -> str | None:
    """A credential helper's answer (its protocol: docker-credential-helpers); None = not found."""
    import subprocess

    program = f"docker-credential-{name}"
    if "/" in name:
        raise ClientError(f"credential helper {name!r}: expected a name, no path")
    try:
        done = subprocess.run(
            [program, action], input=stdin, capture_output=True, text=True, check=False,
            timeout=HELPER_TIMEOUT,
        )
    except FileNotFoundError:
        raise ClientError(
            f"credential helper {program}: not found", f"install it, or remove it from {config_path()}"
        ) from None
    except subprocess.TimeoutExpired:
        raise ClientError(f"{program} {action}: no answer in {HELPER_TIMEOUT} s") from None
    if done.returncode:
        said = (done.stdout + done.stderr).strip()
        if "not found" in said.lower():
            return None
        raise ClientError(f"{program} {action}: {said[:500]}")
    return done.stdout


def store(registry: str, auth: Auth) -> str:
    """Keep credentials where docker does; where they went to."""
    import json

    host, path = normal_key(registry), config_path()
    config = _read(path)
    key = HUB_KEY if host == HUB else host
    user, secret = auth.get("username", ""), auth.get("password", "")
    if token := auth.get("identity_token"):
        user, secret = TOKEN_USER, token
    if helper := _helper(config, host):
        body = {"ServerURL": key, "Username": user, "Secret": secret}
        _run_helper(helper, "store", json.dumps(body))
        return f"docker-credential-{helper}"
    import binascii

    entry: dict[str, str] = {}
    if auth.get("identity_token"):
        entry["identitytoken"] = auth["identity_token"]
    packed = f"{auth.get('username', '')}:{auth.get('password', '')}".encode()
    entry["auth"] = binascii.b2a_base64(packed, newline=False).decode()
    config.setdefault("auths", {})[key] = entry
    _write(path, config)
    return path


def erase(registry: str) -> bool:
    """Forget the credentials of a registry; False where there were none."""
    host, path = normal_key(registry), config_path()
    config = _read(path)
    gone = False
    if helper := _helper(config, host):
        _run_helper(helper, "erase", HUB_KEY if host == HUB else host)
        gone = True
    auths = config.get("auths")
    if isinstance(auths, dict):
        for key in [key for key in auths if normal_key(str(key)) == host]:
            del auths[key]
            gone = True
        if gone:
            _write(path, config)
    return gone


def _write(path: str, config: Mapping[str, Any]) -> None:
    """Replace the file as a whole, readable by its owner only; a symbolic link stays one."""
    import json

    path = os.path.realpath(path)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "w") as file:
            json.dump(config, file, indent="\t")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
