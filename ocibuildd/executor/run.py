"""RUN → RunSpec: everything that a step's sandbox is to be, decided before anything is done."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ocibuildd.errors import InvalidArgument
from ocibuildd.model.graph import Mount, Run
from ocibuildd.ports import MountSpec, RunSpec

PIPES = "/dev/pipes"
"""Where heredoc files are mounted (BuildKit's place)."""
SSH_DIRECTORY = "/run/buildkit"
SECRET_MODE = 0o400
SSH_MODE = 0o600
CACHE_MODE = 0o755


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a build gives to all its steps.  secrets: id → bytes.  ssh: id → path of a socket of ours.

    hosts: (name, address).  limits, dns: as ``RunSpec`` has them."""

    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    ssh: Mapping[str, str] = field(default_factory=dict)
    hosts: Sequence[tuple[str, str]] = ()
    limits: Mapping[str, int] = field(default_factory=dict)
    dns: Mapping[str, list[str]] = field(default_factory=dict)
    no_new_privileges: bool = False


@dataclass(frozen=True, slots=True)
class MountInput:
    """What stands behind a bind mount or a cache mount: a chain, or a cache directory on our disk."""

    lowers: Sequence[str] | None = None
    path: str = ""


def mount_target(mount: Mount) -> str:
    """Where a mount ends up ("" = it is no mount but a variable)."""
    if mount.type == "secret" and not mount.target:
        return "" if mount.env else f"/run/secrets/{mount.id}"
    return mount.target


def secret_variables(op: Run, around: Surroundings) -> list[tuple[str, str]]:
    """Secrets that are to be seen as environment variables.  Raises InvalidArgument."""
    found = []
    for mount in op.mounts:
        if mount.type == "secret" and mount.env:
            data = around.secrets.get(mount.id)
            if data is None:
                _missing("secret", mount)
                continue
            if b"\0" in data:
                raise InvalidArgument(f"secret {mount.id}: a variable can't hold a NUL byte")
            found.append((mount.env, data.decode("utf-8", "surrogateescape")))
    return found


def _missing(kind: str, mount: Mount) -> None:
    if mount.required:
        raise InvalidArgument(
            f"{kind} {mount.id}: the step requires it, and the build was not given it",
            hint=f"--{kind} id={mount.id},…" if kind == "secret" else f"--ssh {mount.id}",
        )


def _mount(
    mount: Mount, number: int, behind: MountInput | None, around: Surroundings
) -> MountSpec | None:
    """One mount; None where an optional secret or agent was not given."""
    spec: MountSpec = {"kind": "tmpfs", "target": mount_target(mount), "readonly": mount.readonly}
    match mount.type:
        case "tmpfs":
            return {**spec, "readonly": False, "size": mount.size}
        case "secret":
            data = around.secrets.get(mount.id)
            if data is None:
                _missing("secret", mount)
                return None
            if not spec["target"]:
                return None
            mode = SECRET_MODE if mount.mode is None else mount.mode
            return {**spec, "kind": "secret", "data": base64.b64encode(data).decode(), "mode": mode,
                    "uid": mount.uid, "gid": mount.gid}
        case "ssh":
            path = around.ssh.get(mount.id)
            if path is None:
                _missing("ssh", mount)
                return None
            target = mount.target or f"{SSH_DIRECTORY}/ssh_agent.{number}"
            mode = SSH_MODE if mount.mode is None else mount.mode
            return {**spec, "kind": "socket", "target": target, "path": path, "mode": mode,
                    "uid": mount.uid, "gid": mount.gid}
        case "cache":
            assert behind is not None
            mode = CACHE_MODE if mount.mode is None else mount.mode
            cache: MountSpec = {**spec, "kind": "cache", "path": behind.path, "mode": mode,
                                "uid": mount.uid, "gid": mount.gid}
            if behind.lowers is not None:
                cache |= {"lowers": list(behind.lowers), "source": mount.source}
            return cache
    assert behind is not None
    return {**spec, "kind": "chain", "lowers": list(behind.lowers or ()), "source": mount.source}


def run_spec(
    op: Run, *, lowers: Sequence[str], tree: str, behind: Mapping[int, MountInput],
    around: Surroundings, step: str,
) -> RunSpec:
    """The whole sandbox.  ``behind``: by index of the mount.  Raises InvalidArgument for a secret or
    an agent that is required and was not given."""
    mounts: list[MountSpec] = []
    env = [*op.env, *op.proxy_env, *secret_variables(op, around)]
    agents = 0
    for index, mount in enumerate(op.mounts):
        spec = _mount(mount, agents, behind.get(index), around)
        if spec is None:
            continue
        if mount.type == "ssh":
            if not agents:
                env.append(("SSH_AUTH_SOCK", spec["target"]))
            agents += 1
        mounts.append(spec)
    if op.files:
        mounts.append({
            "kind": "files", "target": PIPES, "readonly": True,
            "files": [[f.name, base64.b64encode(f.data).decode(), f.mode] for f in op.files],
        })
    return {
        "lowers": list(lowers), "tree": tree, "args": list(op.args),
        "env": [list(pair) for pair in dict(env).items()], "cwd": op.cwd or "/", "user": op.user,
        "hostname": op.hostname, "network": op.network, "security": op.security, "mounts": mounts,
        "hosts": [list(pair) for pair in around.hosts],
        "dns": {name: list(values) for name, values in around.dns.items()},
        "limits": {name: value for name, value in around.limits.items() if value},
        "tty": False, "no_new_privileges": around.no_new_privileges, "step": step,
    }
