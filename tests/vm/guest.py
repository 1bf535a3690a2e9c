"""What only a host with systemd and delegated control groups can show.  Runs as root in the machine that run.sh boots."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

PAYLOAD = Path("/payload")
PATIENCE = 180.0
"""Seconds until something must have come about: the machine is emulated."""
USER, ACCOUNT = "dev", "ocibuildd"
SYSTEM_SOCKET = "/run/ocibuildd/ocibuildd.sock"
MEBIBYTE = 1 << 20
HOG = "dd if=/dev/zero of=/dev/null bs=200M count=1"
"""busybox's dd takes a buffer of bs and fills it."""


class Failed(AssertionError):
    """A check that doesn't hold."""


def expect(condition: object, what: object) -> None:
    if not condition:
        raise Failed(str(what)[-3000:])


def sh(*command: str, user: str = "", check: bool = True, **env: str) -> str:
    """Run a command, as a user with a session of theirs; both its streams."""
    if user:
        who = pwd.getpwnam(user)
        session = f"XDG_RUNTIME_DIR=/run/user/{who.pw_uid}"
        bus = f"DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/{who.pw_uid}/bus"
        pairs = [f"{name}={value}" for name, value in env.items()]
        command = ("runuser", "-u", user, "--", "env", "-C", who.pw_dir, f"HOME={who.pw_dir}", session, bus, *pairs,
                   *command)  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    text = done.stdout + done.stderr
    expect(not check or done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{text}")
    return text


def until(what: str, condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        expect(time.monotonic() < end, f"never: {what}")
        time.sleep(0.2)


class Builder:
    """A daemon: whose it is, which manager runs its unit, where its socket is."""

    def __init__(self, user: str, unit: str, socket: str):
        self.user, self.unit, self.socket = user, unit, socket
        self.contexts = 0

    def __call__(self, *args: str, check: bool = True) -> str:
        return sh("ocibuild", "--host", f"unix://{self.socket}", *args, user=self.user, check=check)

    def systemctl(self, *args: str, check: bool = True) -> str:
        if self.user == USER:
            return sh("systemctl", "--user", *args, user=USER, check=check)
        return sh("systemctl", *args, check=check)

    def show(self, what: str) -> str:
        return self.systemctl("show", "--value", "-p", what, self.unit).strip()

    def group(self) -> Path:
        return Path(f"/sys/fs/cgroup{self.show('ControlGroup')}")

    def context(self, command: str) -> str:
        """A directory with a Dockerfile of one step."""
        self.contexts += 1
        path = Path(pwd.getpwnam(self.user).pw_dir) / f"{self.unit}-{self.contexts}"
        path.mkdir()
        (path / "Dockerfile").write_text(f"FROM busybox\nRUN {command}\n")
        sh("chown", "-R", self.user, str(path))
        return str(path)

    def build(self, command: str, *options: str, check: bool = True) -> str:
        return self("build", "--progress=plain", "--network=none", *options, self.context(command), check=check)

    def background(self, command: str, *options: str) -> str:
        """Start a build; its id."""
        return self("build", "--detach", "--network=none", *options, self.context(command)).split()[-1]

    def leaf(self) -> Path:
        """The control group in which a step runs."""
        found: list[Path] = []

        def running() -> bool:
            found[:] = [
                leaf for leaf in self.group().glob("step-*")
                if any(b"sleep" in _command(pid) for pid in (leaf / "cgroup.procs").read_text().split())
            ]
            return bool(found)

        until("a step sleeps in a group of its own", running)
        return found[0]

    def usage(self, build: str) -> dict[str, float]:
        """What the one step of a build used."""
        shown = self("logs", "--progress=json", build)
        for line in shown.splitlines():
            if usage := json.loads(line).get("usage"):
                return dict(usage)
        raise Failed(f"no usage in {shown}")


def _command(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _value(path: Path) -> str:
    return path.read_text().strip()


# --- the machine -----------------------------------------------------------------------------------------


def prepare() -> None:
    """Accounts, units, a session that lasts."""
    expect(Path("/sys/fs/cgroup/cgroup.controllers").exists(), "the hierarchy isn't unified")
    sh("useradd", "--create-home", "--shell", "/bin/bash", USER)
    sh("useradd", "--system", "--create-home", "--home-dir", "/var/lib/ocibuildd", ACCOUNT)
    sh("usermod", "--add-subuids", "200000-265535", "--add-subgids", "200000-265535", ACCOUNT)
    for kind in ("user", "system"):
        for unit in (PAYLOAD / "systemd" / kind).iterdir():
            sh("install", "-m644", str(unit), f"/etc/systemd/{kind}/")
            if unit.suffix == ".service":  # an emulated machine takes minutes for what takes a real one a second
                patience = Path(f"/etc/systemd/{kind}/{unit.name}.d/patience.conf")
                patience.parent.mkdir()
                patience.write_text("[Service]\nTimeoutStartSec=15min\n")
    sh("loginctl", "enable-linger", USER)
    bus = Path(f"/run/user/{pwd.getpwnam(USER).pw_uid}/bus")
    until("the user's manager runs", bus.exists)
    sh("systemctl", "daemon-reload")


def people() -> Builder:
    """The user's daemon, by its socket."""
    builder = Builder(USER, "ocibuildd.service", f"/run/user/{pwd.getpwnam(USER).pw_uid}/ocibuildd/ocibuildd.sock")
    builder.systemctl("enable", "--now", "ocibuildd.socket")
    return builder


def host(unit: str) -> Builder:
    """The machine's daemon."""
    builder = Builder(ACCOUNT, unit, SYSTEM_SOCKET)
    builder.systemctl("start", "ocibuildd.socket" if unit == "ocibuildd.service" else unit)
    return builder


# --- checks ----------------------------------------------------------------------------------------------


def a_socket_activates_the_service(builder: Builder) -> None:
    expect(builder.show("ActiveState") == "inactive", builder.show("ActiveState"))
    builder("version")
    expect(builder.show("ActiveState") == "active", builder.systemctl("status", builder.unit, check=False))


def an_image_is_imported(builder: Builder) -> None:
    builder("import", "--change", "ENV PATH=/bin", str(PAYLOAD / "busybox.tar"), "busybox")


def doctor_finds_the_controllers(builder: Builder) -> None:
    text = builder("doctor", check=False)
    line = next(line for line in text.splitlines() if "control groups" in line)
    expect("memory" in line and "pids" in line, text)


def a_step_runs_and_has_the_network(builder: Builder) -> None:
    builder("build", "--progress=plain", builder.context("id && ip route | grep default"))


def a_step_over_its_memory_is_told_so(builder: Builder) -> None:
    text = builder.build(HOG, "--memory=64m", check=False)
    expect("OOM-killed at 64 MiB" in text, text)
    text = builder.build(f"{HOG} || true", "--memory=64m", check=False)
    expect("OOM-killed at 64 MiB" in text, f"the step went on without its child: {text}")
    builder.build(HOG)


def limits_are_in_the_kernel(builder: Builder) -> None:
    controllers = _value(builder.group() / "cgroup.subtree_control").split()
    build = builder.background(
        "sleep 1000", "--memory=96m", "--memory-swap=128m", "--cpu-quota=20000", "--cpu-period=50000",
        "--cpu-shares=512", "--cpuset-cpus=1",
    )
    leaf = builder.leaf()
    found = {"memory.max": str(96 * MEBIBYTE), "memory.oom.group": "1", "cpu.max": "20000 50000", "cpu.weight": "20"}
    if "cpuset" in controllers:
        found["cpuset.cpus"] = "1"
    else:
        print(f"   (cpuset is not delegated here: {controllers})")
    for name, value in found.items():
        expect(_value(leaf / name) == value, f"{name}: {_value(leaf / name)}, {value} wanted")
    swap = leaf / "memory.swap.max"
    expect(not swap.exists() or _value(swap) == str(32 * MEBIBYTE), "memory.swap.max")
    builder("cancel", build)
    until("the group is gone", lambda: not leaf.exists())


def the_number_of_processes_is_bounded(builder: Builder) -> None:
    build = builder.background("sleep 1000")
    leaf = builder.leaf()
    expect(_value(leaf / "pids.max") == "40", _value(leaf / "pids.max"))
    builder("cancel", build)
    bomb = "i=0; while [ $i -lt 60 ]; do sleep 100 & i=$((i+1)); done"
    text = builder.build(bomb, check=False)
    expect("fork" in text, text)


def cpu_time_is_rationed(builder: Builder) -> None:
    work = "timeout 12 sh -c 'while :; do :; done'; true"
    builder.build(work, "--cpu-quota=10000", "--tag=rationed")
    usage = builder.usage(last_build(builder))
    share = (usage["user"] + usage["system"]) / usage["wall"]
    expect(share < 0.25, usage)


def the_peak_of_memory_is_the_kernels(builder: Builder) -> None:
    text = builder.build(f"{HOG}; echo peak", "--profile")
    usage = builder.usage(last_build(builder))
    expect(195 * MEBIBYTE < usage["max_rss"] < 260 * MEBIBYTE, usage)
    expect("MiB" in text or "MB" in text, text)


def last_build(builder: Builder) -> str:
    return builder("ps", "-aq").split()[0]


def killing_nsd_leaves_no_group(builder: Builder) -> None:
    build = builder.background("sleep 1000")
    leaf = builder.leaf()
    nsd = next(pid for pid in (builder.group() / "daemon/cgroup.procs").read_text().split()
               if _value(Path(f"/proc/{pid}/comm")) == "ocibuild-nsd")  # fmt: skip
    os.kill(int(nsd), 9)
    until("the step's processes are gone", lambda: not leaf.exists() or "populated 0" in _value(leaf / "cgroup.events"))
    builder.build("true")
    until("the group is gone", lambda: not leaf.exists())
    expect("nsd" in builder("logs", build, check=False), builder("logs", build, check=False))


def reload_reads_the_configuration_again(builder: Builder) -> None:
    path = Path(pwd.getpwnam(builder.user).pw_dir) / ".config/ocibuildd/ocibuildd.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[limits]\npids = 40\n")
    before = builder.show("MainPID")
    builder.systemctl("reload", builder.unit)
    until("the reload is done", lambda: builder.show("ActiveState") == "active")
    expect(builder.show("MainPID") == before, "it was started again, not reloaded")


def stop_lets_a_build_end(builder: Builder) -> None:
    build = builder.background("sleep 8 && echo drained")
    builder.leaf()
    builder.systemctl("stop", builder.unit)
    expect(builder.show("Result") == "success", builder.systemctl("status", builder.unit, check=False))
    until("nothing of it is left", lambda: not (builder.group() / "daemon").exists())
    text = builder("logs", build)  # the socket starts it again
    expect("drained" in text, text)
    expect(builder.show("ActiveState") == "active", "the socket did not start it again")


def nothing_is_left(builder: Builder) -> None:
    group = builder.group()
    builder.systemctl("stop", "ocibuildd.socket", builder.unit)
    until("the group is gone", lambda: not list(group.glob("step-*")))
    mounts = Path("/proc/self/mountinfo").read_text()
    expect("overlay" not in mounts, mounts)


def the_watchdog_is_fed(builder: Builder) -> None:
    microseconds = builder.show("WatchdogUSec")
    expect(microseconds not in ("", "0", "infinity"), microseconds)
    expect(builder.show("NRestarts") == "0", builder.show("NRestarts"))


COMMON = [
    an_image_is_imported, doctor_finds_the_controllers, a_step_runs_and_has_the_network, a_step_over_its_memory_is_told_so,
    limits_are_in_the_kernel, cpu_time_is_rationed, the_peak_of_memory_is_the_kernels, killing_nsd_leaves_no_group,
]
SETS: dict[str, tuple[Callable[[], Builder], list[Callable[[Builder], None]]]] = {
    "user": (people, [
        a_socket_activates_the_service, *COMMON, reload_reads_the_configuration_again,
        the_number_of_processes_is_bounded, stop_lets_a_build_end, the_watchdog_is_fed, nothing_is_left,
    ]),
    "system": (lambda: host("ocibuildd.service"), [
        a_socket_activates_the_service, *COMMON, reload_reads_the_configuration_again, stop_lets_a_build_end,
        nothing_is_left,
    ]),
    "hardened": (lambda: host("ocibuildd-hardened.service"), [
        an_image_is_imported, doctor_finds_the_controllers, a_step_runs_and_has_the_network,
        a_step_over_its_memory_is_told_so, nothing_is_left,
    ]),
}  # fmt: skip


def run(name: str, check: Callable[..., None], *arguments: object) -> bool:
    started = time.monotonic()
    try:
        check(*arguments)
    except Exception as error:  # each check is told, none ends the others
        trace = "" if isinstance(error, Failed) else traceback.format_exc()
        print(f"FAILED {name}: {error}\n{trace}", flush=True)
        return False
    print(f"ok {name} ({time.monotonic() - started:.0f} s)", flush=True)
    return True


def main() -> None:
    wanted = (PAYLOAD / "wanted").read_text().split() or list(SETS)
    held = [run("prepare", prepare)]
    for name in wanted:
        begin, checks = SETS[name]
        print(f"--- {name}", flush=True)
        try:
            builder = begin()
        except Failed as error:
            held.append(False)
            print(f"FAILED {name}: {error}", flush=True)
        else:
            held += [run(f"{name}: {check.__name__.replace('_', ' ')}", check, builder) for check in checks]
        if not all(held):
            print(sh("journalctl", "--no-pager", "-n", "60", "-o", "cat", check=False)[-5000:], flush=True)
    print("all checks held" if all(held) else f"{held.count(False)} checks failed", flush=True)
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
