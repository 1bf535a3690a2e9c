"""What the host has for sandboxes, and what to do about what it lacks (``ocibuild doctor``).

:func:`host_facts` reads files and tries nothing dangerous; :func:`selftest` tries overlayfs and procfs where they
will be used (in nsd's user namespace); :func:`requirements` judges both.  It is pure.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..errors import BuildError
from ..ports import Requirement
from . import mounts, trees, userns
from .mounts import PRIVATE

APPARMOR = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
MINIMUM_NAMESPACES = 64
"""Fewer user namespaces than that (user.max_user_namespaces) and parallel steps fail."""

PROFILE = "/etc/apparmor.d/ocibuildd"


def host_facts(state: Path) -> dict[str, Any]:
    """Facts of this host, as JSON-able values.  Quick: files only."""
    uid = os.geteuid()
    ids = userns.discover()
    return {
        "user": userns.user_name(uid),
        "root": uid == 0,
        "kernel": os.uname().release,
        "ids": {"mode": ids.mode, "count": ids.count, "direct": ids.direct, "notes": list(ids.notes)},
        "newuidmap": [_mapper("newuidmap"), _mapper("newgidmap")],
        "max_user_namespaces": _number("/proc/sys/user/max_user_namespaces"),
        "unprivileged_userns_clone": _number("/proc/sys/kernel/unprivileged_userns_clone"),
        "apparmor_restricts": _number(APPARMOR) == 1 and not Path(PROFILE).exists(),
        "tun": _openable("/dev/net/tun"),
        "fuse": _openable("/dev/fuse"),
        "programs": {
            name: shutil.which(name, path=_PATH) or "" for name in ("pasta", "slirp4netns", "fuse-overlayfs", "git")
        },
        "file_system": _file_system(state),
        "no_new_privs": "NoNewPrivs:\t1" in _text("/proc/self/status"),
    }


_PATH = os.environ.get("PATH", os.defpath) + ":/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _number(path: str) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _openable(path: str) -> str:
    """ "" when it can be opened for reading and writing, else why not."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.strerror or "?"
    return ""


def _mapper(name: str) -> str:
    """How newuidmap gets its rights: "setuid", "capabilities", "none", "" (not installed)."""
    path = shutil.which(name, path=_PATH)
    if path is None:
        return ""
    if os.stat(path).st_mode & stat.S_ISUID:
        return "setuid"
    try:
        return "capabilities" if os.getxattr(path, "security.capability") else "none"
    except OSError:
        return "none"


def _file_system(path: Path) -> str:
    """The type of the file system that holds ``path``, from mountinfo (proc(5)): longest mount point wins."""
    best, found = "", "unknown"
    real = os.path.realpath(path)
    for line in _text("/proc/self/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        point = fields.split()[4]
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, found = point, rest.split()[0]
    return found


def selftest(state: bytes) -> dict[str, str]:
    """Try overlayfs and procfs in this process's namespaces; {name: "" or what went wrong}.

    overlay: a lower directory is removed and made again (which gives EIO without userxattr).
    rename: renaming a lower directory must give EXDEV, since layers can't tell of redirects."""
    base = os.path.join(state, b"tmp", b"probe-" + uuid.uuid4().hex.encode())
    lower, upper, work = (os.path.join(base, name) for name in (b"lower", b"upper", b"work"))
    result = {"overlay": "", "rename": "", "proc": ""}
    try:
        for path in (os.path.join(lower, b"a"), os.path.join(lower, b"b"), upper, work):
            os.makedirs(path)
        mount = mounts.overlay([lower], upper=upper, work=work)
        try:
            os.rmdir("a", dir_fd=mount)
            os.mkdir("a", dir_fd=mount)
            result["rename"] = _renamed(mount)
        finally:
            os.close(mount)
    except OSError as error:
        result["overlay"] = error.strerror or str(error)
    finally:
        trees.discard(base)
    result["proc"] = proc_problem()
    return result


def proc_problem() -> str:
    """ "" when a new procfs can be mounted here, else why not (EPERM: the one that is visible is masked)."""
    try:
        os.close(mounts.filesystem("proc", {}, PRIVATE))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _renamed(mount: int) -> str:
    try:
        os.rename("b", "c", src_dir_fd=mount, dst_dir_fd=mount)
    except OSError as error:
        return "" if error.errno == errno.EXDEV else error.strerror or str(error)
    return "a lower directory was renamed: layers would lack it"


# --- judgement -----------------------------------------------------------------------------------------


def requirements(host: Mapping[str, Any], nsd: Mapping[str, Any]) -> tuple[Requirement, ...]:
    """One row for each thing.  ``host``: :func:`host_facts`; ``nsd``: ``Site.describe``."""
    return (
        _namespaces(host), _apparmor(host), _ids(host, nsd), _mappers(host, nsd), _overlay(host, nsd), _proc(nsd),
        _network(host, nsd), _program(host, "slirp4netns", "the fallback of pasta is missing", optional=True),
        _cgroups(nsd), _program(host, "git", "contexts and ADD from git repositories don't work"),
    )


def without_sandbox(host: Mapping[str, Any], problem: BuildError) -> tuple[Requirement, ...]:
    """The rows of a host on which nsd doesn't start: why, and what its files say.  Nothing else could be tried."""
    return (
        _row("sandbox", "missing", problem.message, "no build step can run", problem.hint),
        _namespaces(host), _apparmor(host), _ids(host, {}), _mappers(host, {}),
    )


def _row(
    name: str, level: Literal["ok", "degraded", "missing"], found: str, cost: str = "", fix: str = ""
) -> Requirement:
    return Requirement(name, level, found, "" if level == "ok" else cost, "" if level == "ok" else fix)


def _namespaces(host: Mapping[str, Any]) -> Requirement:
    cost = "no build step can run"
    if host["unprivileged_userns_clone"] == 0 and not host["root"]:
        fix = "sudo sysctl -w kernel.unprivileged_userns_clone=1"
        return _row("user namespaces", "missing", "switched off for users", cost, fix)
    limit = host["max_user_namespaces"]
    if limit is not None and limit < MINIMUM_NAMESPACES:
        level: Literal["degraded", "missing"] = "degraded" if limit > 2 else "missing"
        fix = "sudo sysctl -w user.max_user_namespaces=28633"
        return _row("user namespaces", level, f"at most {limit}", cost, fix)
    return _row("user namespaces", "ok", f"at most {limit if limit is not None else 'any'}, Linux {host['kernel']}")


def _apparmor(host: Mapping[str, Any]) -> Requirement:
    if not host["apparmor_restricts"] or host["root"]:
        return _row("apparmor", "ok", "does not restrict user namespaces here")
    return _row(
        "apparmor", "missing", "restricts unprivileged user namespaces", "no build step can run",
        f"sudo cp systemd/apparmor/ocibuildd {PROFILE} && sudo apparmor_parser -r {PROFILE}",
    )


def _ids(host: Mapping[str, Any], nsd: Mapping[str, Any]) -> Requirement:
    """What nsd has got counts, not what the files promise."""
    user = host["user"]
    ids = {"mode": nsd["ids"], "count": nsd["count"], "notes": nsd["notes"]} if "ids" in nsd else host["ids"]
    fix = f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
    if ids["mode"] == "shifted":
        return _row("subordinate ids", "ok", f"{ids['count']} ids, root in a step is none of ours")
    if ids["mode"] == "identity":
        cost = "root in a step is this user itself (weaker isolation); higher ids can't be owned"
        return _row("subordinate ids", "degraded", f"{ids['count']} ids", cost, fix)
    cost = "one id only: chown to others is refused, apt and su fail"
    if userns.REFUSED in ids["notes"]:
        fix = _MAPPERS_FIX
    return _row("subordinate ids", "degraded", "; ".join(ids["notes"]) or "none", cost, fix)


_MAPPERS_FIX = (
    "sudo setcap cap_setuid=ep $(command -v newuidmap) && sudo setcap cap_setgid=ep $(command -v newgidmap)"
)


def _mappers(host: Mapping[str, Any], nsd: Mapping[str, Any]) -> Requirement:
    found = host["newuidmap"]
    if host["ids"]["direct"]:
        return _row("newuidmap", "ok", "not needed: we may write id maps ourselves")
    cost = "subordinate ids can't be used: one id only"
    if "" in found:
        return _row("newuidmap", "degraded", "not installed", cost, "sudo apt-get install uidmap")
    if "none" in found:
        return _row("newuidmap", "degraded", "neither setuid nor with file capabilities", cost, _MAPPERS_FIX)
    if host["no_new_privs"]:
        fix = "start the daemon without NoNewPrivileges= and what implies it"
        return _row("newuidmap", "degraded", "no_new_privs is set: it gains no rights", cost, fix)
    if userns.REFUSED in nsd.get("notes", ()):
        found_here = f"{found[0]}, but not allowed to write id maps (setuid root lacks CAP_SYS_ADMIN in a container)"
        return _row("newuidmap", "degraded", found_here, cost, _MAPPERS_FIX)
    return _row("newuidmap", "ok", found[0])


def _overlay(host: Mapping[str, Any], nsd: Mapping[str, Any]) -> Requirement:
    tested, mode = nsd.get("selftest", {}), nsd.get("overlay", "kernel")
    problem = tested.get("overlay") or tested.get("rename")
    where = f"on {host['file_system']}"
    if mode == "kernel" and not problem:
        return _row("overlayfs", "ok", f"kernel, {where}")
    found = f"{problem or 'not used, by the configuration'} ({where}): {mode} in its place"
    fix = "put the state directory on ext4, xfs, btrfs or a volume (state_dir in ocibuildd.toml); Linux 5.11 or later"
    cost = {
        "kernel": "no build step can run", "fuse": "files of a step are read and written slower",
        "copy": "every step copies its whole root file system; fuse-overlayfs and /dev/fuse would spare that",
    }[mode]
    return _row("overlayfs", "missing" if mode == "kernel" else "degraded", found, cost, fix)


def _proc(nsd: Mapping[str, Any]) -> Requirement:
    problem = nsd.get("selftest", {}).get("proc", "")
    if not problem:
        return _row("procfs", "ok", "a step has its own")
    return _row(
        "procfs", "degraded", f"{problem}: ours is masked (a container's)",
        "steps see the processes of this container, read-only",
        "docker run --security-opt systempaths=unconfined --security-opt seccomp=unconfined … "
        "(Kubernetes: procMount: Unmasked)",
    )


def _network(host: Mapping[str, Any], nsd: Mapping[str, Any]) -> Requirement:
    cost = "steps have no network (--network=host, where it is allowed, still works)"
    network = nsd.get("network", {})
    if network.get("mode", "none") != "none" and network.get("resolvers") == []:
        return _row(
            "network", "degraded", f"{network['mode']}, but /etc/resolv.conf names no server",
            "steps can't resolve names", "put a nameserver into /etc/resolv.conf, or build with --dns=ADDRESS",
        )
    if network.get("mode", "none") != "none":
        return _row("network", "ok", f"{network['mode']}, isolated from this host's loopback")
    if host["tun"]:
        return _row("network", "degraded", f"/dev/net/tun: {host['tun']}", cost, "sudo chmod 666 /dev/net/tun")
    if not host["programs"]["pasta"]:
        return _row("network", "degraded", "pasta is not installed", cost, "sudo apt-get install passt")
    found = network.get("reason") or "not started"
    return _row("network", "degraded", found, cost, network.get("fix", ""))


def _program(host: Mapping[str, Any], name: str, cost: str, *, optional: bool = False) -> Requirement:
    path = host["programs"][name]
    if path or optional:
        return _row(name, "ok", path or "not installed (not needed)")
    return _row(name, "degraded", "not installed", cost, f"sudo apt-get install {name}")


def _cgroups(nsd: Mapping[str, Any]) -> Requirement:
    controllers = set(nsd.get("controllers", ()))
    lacking = {"memory", "pids", "cpu"} - controllers
    if nsd.get("cgroup") == "v2" and not lacking:
        return _row("control groups", "ok", f"v2: {', '.join(sorted(controllers))}")
    found = "no delegated subtree" if nsd.get("cgroup") != "v2" else f"v2 without {', '.join(sorted(lacking))}"
    return _row(
        "control groups", "degraded", found,
        "--memory and --cpu-quota don't hold; processes are limited by rlimits",
        "systemctl --user start ocibuildd (the unit has Delegate=yes), or "
        "systemd-run --user --scope -p Delegate=yes ocibuildd",
    )
