"""Section A, what a step sees of itself: capabilities, seccomp, groups, descriptors, mounts, masks."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ocibuildd.errors import BuildError

X86_64 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="system call numbers are x86_64's")


def test_the_whole_profile_is_as_documented(box):
    """What amicontained and its kin print, by a probe of ours."""
    seen = box.python("""
        status = dict(line.rstrip("\\n").split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
        tell({
            "caps": {k: status[k] for k in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")},
            "seccomp": status["Seccomp"], "nnp": status["NoNewPrivs"], "groups": status["Groups"].split(),
            "ids": os.getresuid() + os.getresgid(), "pid": os.getpid(), "ppid": os.getppid(),
            "sid": os.getsid(0), "umask": os.umask(0), "hostname": os.uname().nodename,
            "maps": open("/proc/self/uid_map").read().split()[:3:2],
            "userns": open("/proc/sys/user/max_user_namespaces").read().strip(),
            "oom": open("/proc/self/oom_score_adj").read().strip(),
            "env": sorted(os.environ), "interfaces": sorted(os.listdir("/sys/class/net")),
            "dev": sorted(os.listdir("/dev")),
        })
    """).json()
    assert seen["caps"] == {
        "CapInh": "0" * 16, "CapPrm": "00000000a80425fb", "CapEff": "00000000a80425fb",
        "CapBnd": "00000000a80425fb", "CapAmb": "0" * 16,
    }
    assert (seen["seccomp"], seen["nnp"], seen["userns"], seen["oom"]) == ("2", "0", "0", "500")
    assert seen["ids"] == [0] * 6
    assert seen["groups"] in ([], ["0"])
    assert (seen["pid"], seen["ppid"], seen["sid"], seen["umask"]) == (1, 0, 1, 0o22)
    assert seen["hostname"] == "box"
    assert set(seen["env"]) <= {"PATH", "HOME", "LC_CTYPE", "HOSTNAME"}
    assert seen["interfaces"] == ["lo"]
    assert seen["dev"] == [
        "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
        "urandom", "zero",
    ]


def test_a01_the_interpreter_of_the_host_cannot_be_opened_through_proc(box):
    before = hashlib.sha256(Path(sys.executable).resolve().read_bytes()).hexdigest()
    seen = box.python("""
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            for name in ("exe", "root", "cwd"):
                path = f"/proc/{pid}/{name}"
                found[path] = [attempt(lambda: os.readlink(path)), attempt(lambda: os.stat(path).st_dev)]
            path = f"/proc/{pid}/exe"
            found[path].append(attempt(lambda: bool(os.open(path, os.O_WRONLY))))
        tell(found)
    """).json()
    assert {path.split("/")[2] for path in seen} == {"1"}  # nobody else is there
    assert seen["/proc/1/exe"][0] == "/usr/bin/python3"
    assert seen["/proc/1/exe"][2] == "ETXTBSY"  # the image's own file, running
    assert seen["/proc/1/root"][0] == "/"
    assert hashlib.sha256(Path(sys.executable).resolve().read_bytes()).hexdigest() == before


def test_a02_no_descriptor_leaks_into_a_step(box):
    seen = box.python("""
        fds = sorted(map(int, os.listdir("/proc/self/fd")))
        tell([fd for fd in fds if attempt(lambda: os.readlink(f"/proc/self/fd/{fd}")) != "ENOENT"])
    """).json()
    assert seen == [0, 1, 2]


LEAKY = """
import os, socket, sys
sys.path[:] = {path!r}
from ocibuildd.sandbox import guest, spec, step, users
os.dup2(0, 40, inheritable=True); os.dup2(0, 41, inheritable=True)
step.keep_only({{0, 1, 2, 41}})
print(sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{{fd}}")), flush=True)
ours, theirs = socket.socketpair()
os.dup2(0, 40, inheritable=True)
plan = spec.plan({spec!r})
guest._harden(ours, plan, users.Identity(os.getuid(), os.getgid(), (), "/"), None, single=True)
os.execv("/bin/ls", ["ls", "-x", "/proc/self/fd"])
"""


def test_a02_what_is_open_by_mistake_is_closed_at_birth_and_once_more_before_the_command(box):
    """Both would have to fail, and somebody forget O_CLOEXEC, for the test above this to see a descriptor."""
    program = LEAKY.format(path=sys.path, spec=box.spec(["/bin/true"]))
    command = [sys.executable, "-I", "-S", "-c", program]
    out = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout
    assert out.splitlines()[0] == "[0, 1, 2, 41]"
    assert out.splitlines()[1].split() == ["0", "1", "2", "3"]  # 3 is the directory that ls reads


@pytest.mark.parametrize("fd", [*range(3, 21), 50])
def test_a02_a_working_directory_behind_a_descriptor_is_not_the_host_s(box, fd):
    """No link of the kernel's is followed.  (Were one, the path would be "(unreachable)/…" after pivot_root, which the
    guest refuses too: a second bolt, that no image gets to.)"""
    with pytest.raises(BuildError, match="working directory"):
        box.run("pwd; ls /proc/self/cwd/../../../../..", cwd=f"/proc/self/fd/{fd}")


def test_a02_no_descriptor_that_a_sandbox_is_given_is_a_way_out(box, canary):
    """A directory of the host as standard input: no working directory leads through it before the step begins."""
    spec = box.spec(["/bin/sh", "-c", "cat file; cat ../file"])
    outside = os.open(canary, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for fd in range(3, 16):
            read, write = os.pipe()
            try:
                box.call("run", {**spec, "cwd": f"/proc/self/fd/{fd}"}, [write, write, outside])
            except (BuildError, OSError):
                pass  # refused before anything ran
            os.close(write)
            with open(read) as said:
                assert "untouched" not in said.read()
    finally:
        os.close(outside)


@pytest.mark.parametrize(
    "dev_null", [{"dev/null": "->/etc/passwd"}, {"dev/null": b"a file"}, {"dev/null": None}]
)
def test_a04_masks_do_not_depend_on_the_image_s_dev_null(box, dev_null):
    seen = box.python(
        """
        null = os.stat("/dev/null")
        tell([os.major(null.st_rdev), os.minor(null.st_rdev), open("/proc/keys").read(),
              open("/proc/timer_list").read(), open("/etc/passwd").read()[:4]])
        """,
        lowers=box.variant(dev_null),
    ).json()
    assert seen == [1, 3, "", "", "root"]


@pytest.mark.parametrize("tty", [False])
def test_a05_a_console_that_is_a_symlink_is_not_followed(box, canary, tty):
    result = box.run("ls -l /dev/console; true", lowers=box.variant({"dev/console": f"->{canary}/file"}), tty=tty)
    assert "No such file" in result.out


def test_a06_proc_is_a_procfs_even_with_mounts_that_race_for_it(box):
    target = {"kind": "tmpfs", "target": "/x/proc", "readonly": False, "size": 1 << 20}
    lowers = box.variant({"x": "->/"})
    with pytest.raises((BuildError, OSError)):
        box.run("true", lowers=lowers, mounts=[target])
    seen = box.run("stat -f -c %t /proc /proc/sys /sys; cat /proc/sys/kernel/core_pattern >/dev/null; echo")
    assert seen.out.split() == ["9fa0", "9fa0", "62656572"]


LINKS = ["{canary}", "../../../../../../../../..{canary}", "/proc/self/cwd/..{canary}", "/proc/1/root{canary}"]


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("name", ["dev", "proc", "sys", "etc", "run", "tmp", "etc/resolv.conf", "etc/hosts", "etc/hostname"])
def test_a07_links_in_place_of_mount_points_do_not_lead_out(box, canary, name, link):
    lowers = box.variant({name: "->" + link.format(canary=canary)})
    try:
        result = box.run(f"cat {canary}/file; echo overwritten > {canary}/file", lowers=lowers)
    except (BuildError, OSError):
        return  # refused; the fixture checks the host's directory
    assert "untouched" not in result.out


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
@pytest.mark.parametrize("link", ["/scratch", "scratch", "/", "/nowhere"])
def test_a08_a_link_in_place_of_proc_is_refused(box, name, link):
    lowers = box.variant({name: f"->{link}", "scratch": None})
    with pytest.raises(BuildError, match="not a directory in the image"):
        box.run("true", lowers=lowers)


MASKED_FILES = ("/proc/keys", "/proc/timer_list", "/proc/interrupts", "/proc/kcore", "/proc/latency_stats")


def test_a08_what_is_masked_is_empty(box):
    seen = box.python(f"""
        files = [path for path in {MASKED_FILES!r} if os.path.exists(path)]
        tell([[attempt(lambda: len(open(path, "rb").read(64))) for path in files], len(files),
              [attempt(lambda: os.listdir(path)) for path in ("/proc/acpi", "/proc/scsi", "/sys/firmware")]])
    """).json()
    assert seen[1] >= 2
    assert set(seen[0]) == {0}
    assert all(found in ([], "ENOENT") for found in seen[2])


def test_a08_what_is_read_only_is_so_by_its_mount_too(box):
    paths = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/sys")
    seen = box.python(f"""
        tell([[attempt(lambda: os.statvfs(path).f_flag & os.ST_RDONLY) for path in {paths!r}],
              attempt(lambda: os.open("/proc/sys/kernel/domainname", os.O_WRONLY))])
    """).json()
    assert seen[0][-1] == 1
    assert set(seen[0]) <= {1, "ENOENT"}  # not every kernel has sysrq
    assert seen[0].count(1) >= 5
    assert seen[1] in {"EROFS", "EACCES"}


@pytest.mark.parametrize("target", ["/proc", "/proc/sys", "/sys", "/sys/fs/cgroup", "/dev", "/dev/pts", "/", "//proc//", "/x/../proc", "/dev/../proc/self"])
def test_a09_mounts_over_proc_sys_and_dev_are_refused(box, target):
    with pytest.raises(BuildError, match="mount"):
        box.run("true", mounts=[{"kind": "tmpfs", "target": target, "readonly": False}])


def test_a10_control_groups_are_not_writable(box):
    result = box.run("mkdir /sys/fs/cgroup/x && echo made; mkdir /sys/fs/cgroup/unified/x && echo made; echo 1 > /sys/kernel/notes")
    assert "made" not in result.out
    assert "cgroup" not in box.run("cat /proc/self/mountinfo").out


@pytest.mark.parametrize("user", ["", "alice", "1234:99"])
def test_a11_inheritable_and_ambient_capabilities_are_empty(box, user):
    out = box.run("grep -E 'Cap(Inh|Amb|Eff)' /proc/self/status", user=user).out.split()
    caps = dict(zip(out[::2], out[1::2], strict=True))
    assert caps["CapInh:"] == caps["CapAmb:"] == "0" * 16
    assert (caps["CapEff:"] == "0" * 16) == bool(user)


@pytest.mark.parametrize(
    ("user", "groups"),
    [("alice", "1000 10 2000"), ("1000", "1000 10 2000"), ("alice:wheel", "10"), ("1234", "0"), ("1234:77", "77")],
)
def test_a12_supplementary_groups_are_the_image_s(box, user, groups):
    seen = box.run("id -G", user=user).out.split()
    assert seen[0] == groups.split()[0]
    assert set(seen) == set(groups.split())


def test_a13_the_daemon_s_environment_is_nowhere_to_be_read(box):
    result = box.run("cat /proc/*/environ /proc/*/cmdline /proc/*/task/*/environ 2>/dev/null")
    assert "canary-in-the-daemon" not in result.out
    assert "PATH=" in result.out


def test_a14_mounts_of_a_step_are_private(box):
    out = box.run("cat /proc/self/mountinfo").out
    assert "shared:" not in out
    assert "propagate_from" not in out


@X86_64
def test_a34_the_kernel_s_wide_surface_is_closed(box):
    seen = box.python("""
        tell({
            "unshare": syscall(272, 0x10000000), "unshare net": syscall(272, 0x40000000),
            "setns": syscall(308, 0, 0), "clone": syscall(56, 0x10000011, 0, 0, 0, 0),
            "clone3": syscall(435, 0, 88), "mount": syscall(165, b"x", b"/tmp", b"tmpfs", 0, 0),
            "umount": syscall(166, b"/proc", 2), "pivot_root": syscall(155, b".", b"."),
            "fsopen": syscall(430, b"overlay", 0), "open_tree": syscall(428, 0, b"/", 1),
            "mount_setattr": syscall(442, 0, b"", 0, 0, 0), "move_mount": syscall(429, 0, b"", 0, b"", 0),
            "bpf": syscall(321, 0, 0, 0), "keyctl": syscall(250, 0, 0), "add_key": syscall(248, b"user", b"a", b"b", 1, 0),
            "io_uring": syscall(425, 1, 0), "userfaultfd": syscall(323, 0), "perf": syscall(298, 0, 0, 0, 0, 0),
            "by handle": syscall(304, 0, 0, 0), "module": syscall(175, 0, 0, b""), "reboot": syscall(169, 0, 0, 0, 0),
            "AF_ALG": syscall(41, 38, 5, 0), "AF_VSOCK": syscall(41, 40, 1, 0), "swapon": syscall(167, b"/x", 0),
            "settime": syscall(227, 0, 0), "sethostname": syscall(170, b"x", 1), "future": syscall(900),
        })
    """).json()
    assert seen.pop("clone3") == "ENOSYS"
    assert seen.pop("future") == "ENOSYS"
    assert set(seen.values()) == {"EPERM"}, seen


@X86_64
def test_a34_what_builds_need_still_works(box):
    seen = box.python("""
        import socket, tempfile, threading
        thread = threading.Thread(target=lambda: None); thread.start(); thread.join()
        os.mkfifo("/tmp/fifo"); os.chown("/tmp/fifo", 12, 34)
        tell([
            os.spawnl(os.P_WAIT, "/bin/true", "true"), attempt(lambda: os.chroot("/") or "chroot"),
            attempt(lambda: os.setgid(5) or os.setuid(5) or "ids"), syscall(135, 0xffffffff),
        ])
    """).json()
    assert seen == [0, "chroot", "ids", "OK"]


def test_a35_there_is_no_terminal_to_push_into(box):
    seen = box.python("""
        import fcntl, termios
        tell([attempt(lambda: bool(os.open("/dev/tty", os.O_RDWR))),
              *(attempt(lambda: bool(fcntl.ioctl(fd, termios.TIOCSTI, b"x"))) for fd in (0, 1, 2))])
    """).json()
    assert seen[0] == "ENXIO"
    assert set(seen[1:]) == {"ENOTTY"}


def test_a33_nothing_is_mounted_that_is_not_asked_for(box):
    points = {line.split()[4] for line in box.run("cat /proc/self/mountinfo").out.splitlines()}
    own = {"/", "/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue",
           "/etc/resolv.conf", "/etc/hosts", "/etc/hostname"}
    nodes = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")}
    rest = points - own - nodes
    assert own <= points
    assert all(point.startswith(("/proc/", "/sys/")) for point in rest), rest
