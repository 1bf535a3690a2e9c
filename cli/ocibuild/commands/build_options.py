"""The values of build's options as the request has them."""

from __future__ import annotations

import os

from ..args import Args
from ..context import is_remote
from ..errors import ClientError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

MAX_SECRET = 500 << 10
"""Bytes of one secret, as BuildKit has it."""


def build_args(given: Sequence[str]) -> dict[str, str | None]:
    """``--build-arg``: without a value, the environment's; None when that has none."""
    found: dict[str, str | None] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not name:
            raise UsageError(f"invalid --build-arg {item!r}: expected KEY[=VALUE]")
        found[name] = value if equals else os.environ.get(name)
    # Docker passes proxies that its own configuration names; we pass those of the environment.
    for name in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"):
        for variant in (name, name.upper()):
            if variant in os.environ and name not in found and name.upper() not in found:
                found[variant] = os.environ[variant]
    return found


NETWORKS = ("default", "none", "host")
ENTITLEMENTS = ("network.host", "security.insecure")


def network(text: str) -> str:
    """``--network``."""
    if text and text not in NETWORKS:
        raise UsageError(f"network mode {text!r}: expected default, none or host")
    return text


def entitlements(given: Sequence[str]) -> list[str]:
    """``--allow``."""
    found = each(given)
    for word in found:
        if word not in ENTITLEMENTS:
            from ..args import suggestion

            raise UsageError(
                f"invalid --allow {word!r}: expected {' or '.join(ENTITLEMENTS)}",
                suggestion(word, ENTITLEMENTS),
            )
    return found


def pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    found = {}
    for item in given:
        name, _, value = item.partition("=")
        if not name:
            raise UsageError(f"invalid {option} {item!r}: expected KEY=VALUE")
        found[name] = value
    return found


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def each(given: Sequence[str]) -> list[str]:
    """A repeatable option whose values may hold commas too."""
    return [word for item in given for word in words(item)]


def integer(option: str, text: str) -> int:
    if not text:
        return 0
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise UsageError(f"invalid value {text!r} for {option}: expected a whole number")
    return number


def size(option: str, text: str) -> int:
    """``512m``, ``2g``, bytes."""
    if not text:
        return 0
    number = text.strip().lower().removesuffix("b").removesuffix("i")
    power = "kmgt".find(number[-1:]) + 1 if number else 0
    try:
        return int(float(number[:-1] if power else number) * 1024**power)
    except ValueError:
        raise UsageError(f"invalid value {text!r} for {option}: expected a size such as 512m") from None


def limits(args: Args) -> dict[str, Any]:
    found: dict[str, Any] = {
        "memory": size("--memory", args.memory),
        "memory_swap": size("--memory-swap", args.memory_swap) if args.memory_swap != "-1" else -1,
        "shm_size": size("--shm-size", args.shm_size),
        "cpu_quota": integer("--cpu-quota", args.cpu_quota),
        "cpu_period": integer("--cpu-period", args.cpu_period),
        "cpuset_cpus": args.cpuset_cpus,
        "cpuset_mems": args.cpuset_mems,
        "cpu_shares": integer("--cpu-shares", args.cpu_shares),
        "step_timeout": integer("--step-timeout", args.step_timeout),
    }
    for item in args.ulimit:
        name, _, value = item.partition("=")
        if name != "nofile":
            raise UsageError(f"--ulimit {item!r}: only nofile can be limited")
        found["nofile"] = integer("--ulimit", value.rpartition(":")[2])
    return {key: value for key, value in found.items() if value}


def fields(option: str, text: str) -> dict[str, str]:
    """``a=b,c=d`` as CSV (values with commas in double quotes).  Raises UsageError."""
    if '"' in text:
        import csv

        parts = next(csv.reader([text]))
    else:
        parts = text.split(",")
    found = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not name.strip():
            raise UsageError(f"invalid {option} {text!r}: expected KEY=VALUE,…")
        found[name.strip().lower()] = value if equals else "true"
    return found


def secret(text: str) -> dict[str, str]:
    """``id=ID[,src=PATH|env=NAME]`` → {id, data (base64)}."""
    import binascii

    found = fields("--secret", text)
    kind = found.pop("type", "")
    ident = found.pop("id", "")
    path = found.pop("src", "") or found.pop("source", "")
    name = found.pop("env", "")
    if found:
        raise UsageError(f"invalid --secret {text!r}: unexpected key {next(iter(found))!r}")
    if kind not in ("", "file", "env"):
        raise UsageError(f"invalid --secret {text!r}: unsupported type {kind!r}")
    if kind == "env" and path and not name:
        name, path = path, ""
    ident = ident or (os.path.basename(path) if path else name)
    if not ident:
        raise UsageError(f"invalid --secret {text!r}: id= is missing")
    if not path and not name:
        name = ident if kind == "env" or ident in os.environ else ""
        path = "" if name else ident
    data = _secret_data(path, name)
    if len(data) > MAX_SECRET:
        raise ClientError(f"secret {ident!r}: {len(data)} bytes, expected at most {MAX_SECRET}")
    return {"id": ident, "data": binascii.b2a_base64(data, newline=False).decode()}


def _secret_data(path: str, name: str) -> bytes:
    if name:
        if name not in os.environ:
            raise ClientError(f"secret from variable {name}: it isn't set")
        return os.fsencode(os.environ[name])
    try:
        with open(os.path.expanduser(path), "rb") as file:
            return file.read(MAX_SECRET + 1)
    except OSError as error:
        raise ClientError(f"secret from {path}: {error.strerror}") from None


def ssh(text: str) -> dict[str, Any]:
    """``default``, ``ID``, ``ID=SOCKET``, ``ID=KEY,KEY``, ``…,raw=true``."""
    ident, _, rest = text.partition("=")
    spec: dict[str, Any] = {"id": ident or "default"}
    paths = [part for part in rest.split(",") if part]
    if "raw=true" in paths:
        paths.remove("raw=true")
        spec["raw"] = True
    if not paths:
        agent = os.environ.get("SSH_AUTH_SOCK", "")
        if not agent:
            raise ClientError(
                f"--ssh {text}: no agent, SSH_AUTH_SOCK isn't set", "start ssh-agent, or name a key"
            )
        return {**spec, "agent": agent}
    import stat

    keys = []
    for path in paths:
        path = os.path.abspath(os.path.expanduser(path))
        try:
            if stat.S_ISSOCK(os.stat(path).st_mode):
                return {**spec, "agent": path}
            with open(path, encoding="utf-8") as file:
                keys.append(file.read(MAX_SECRET))
        except OSError as error:
            raise ClientError(f"--ssh {text}: can't read {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ClientError(f"--ssh {text}: {path}: neither a socket nor a key in PEM") from None
    return {**spec, "keys": keys}


OUTPUT_TYPES = ("image", "registry", "oci", "docker", "tar", "local", "cacheonly")


def output(text: str) -> dict[str, Any]:
    """``type=…,dest=…`` or a bare path (a directory; ``-`` = a tar on standard output)."""
    if not text:  # a variable that is not set must not mean the working directory
        raise UsageError("invalid --output '': expected a directory, - or type=…")
    if "=" not in text:
        kind = "tar" if text == "-" else "local"
        return {"type": kind, "dest": text if text == "-" else os.path.abspath(text)}
    found = fields("--output", text)
    if "type" not in found:
        raise UsageError(f"invalid --output {text!r}: type= is missing, one of {', '.join(OUTPUT_TYPES)}")
    kind, dest = found.pop("type"), found.pop("dest", "")
    if kind not in OUTPUT_TYPES:
        from ..args import suggestion

        raise UsageError(
            f"invalid --output {text!r}: type {kind!r}, expected one of {', '.join(OUTPUT_TYPES)}",
            suggestion(kind, OUTPUT_TYPES),
        )
    if not dest and kind in ("oci", "tar"):
        dest = "-"
    if not dest and kind == "docker":  # buildx loads it into the engine: here, the image stays
        kind = "image"
    if kind == "local" and not dest:
        raise UsageError("--output type=local: dest= is missing")
    if dest == "-" and os.isatty(1):
        raise UsageError(f"--output {text!r}: refusing to write a tar to a terminal; use dest=FILE")
    if dest and dest != "-":
        dest = os.path.abspath(os.path.expanduser(dest))
    return {"type": kind, "dest": dest, "attrs": found}


def cache(text: str, *, source: bool) -> dict[str, Any]:
    """``--cache-from`` and ``--cache-to``."""
    option = "--cache-from" if source else "--cache-to"
    if "=" not in text:
        return {"type": "registry", "attrs": {"ref": text}}
    found = fields(option, text)
    kind = found.pop("type", "registry")
    if kind not in ("registry", "local", "inline"):
        raise UsageError(f"invalid {option} {text!r}: type {kind!r}, expected registry, local or inline")
    needed = {"registry": "ref", "local": "src" if source else "dest"}.get(kind)
    if needed and not found.get(needed):
        raise UsageError(f"invalid {option} {text!r}: {needed}= is missing")
    for key in ("src", "dest"):
        if key in found:
            found[key] = os.path.abspath(os.path.expanduser(found[key]))
    return {"type": kind, "attrs": found}


def contexts(given: Sequence[str]) -> dict[str, str]:
    """``--build-context NAME=WHERE``; directories become absolute."""
    found = pairs("--build-context", given)
    if empty := [name for name, where in found.items() if not where]:
        raise UsageError(f"invalid --build-context {empty[0]!r}: expected NAME=WHERE")
    for name, where in found.items():
        if is_remote(where) or where.startswith(("docker-image://", "target:")):
            continue
        if where.startswith("oci-layout://"):
            path = where.removeprefix("oci-layout://")
            where = "oci-layout://" + os.path.abspath(path)
        elif os.path.isdir(where):
            where = os.path.realpath(where)
        else:
            raise ClientError(f"--build-context {name}={where}: no such directory")
        found[name] = where
    return found
