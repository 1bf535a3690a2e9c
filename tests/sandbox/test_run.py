"""What a command finds when it runs in a sandbox: who it is, what it may, what it sees."""

from __future__ import annotations

import base64
import os

import pytest

from ocibuildd import errors

pytestmark = pytest.mark.asyncio(loop_scope="module")

DOCKER_CAPABILITIES = "00000000a80425fb"


def status(text: str) -> dict[str, str]:
    """/proc/self/status as a dict."""
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


async def test_a_command_runs_as_pid_1_and_root(box):
    result = await box.sh("echo $$; id -u; id -g; hostname; pwd")
    assert result.lines == ["1", "0", "0", "buildkitsandbox", "/"]


async def test_root_has_dockers_capabilities_and_no_others(box):
    found = status((await box.run("cat", "/proc/self/status")).output)
    assert [found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == [
        "0000000000000000", DOCKER_CAPABILITIES, DOCKER_CAPABILITIES, DOCKER_CAPABILITIES,
        "0000000000000000",
    ]
    assert (found["Seccomp"], found["NoNewPrivs"]) == ("2", "0")
    assert found["SigIgn"] == found["SigBlk"] == "0000000000000000"
    assert found["Umask"] == "0022"


async def test_a_user_has_no_capabilities_and_the_images_groups(box):
    found = status((await box.run("cat", "/proc/self/status", user="app")).output)
    assert found["CapEff"] == found["CapPrm"] == found["CapInh"] == "0000000000000000"
    assert found["CapBnd"] == DOCKER_CAPABILITIES
    assert found["Uid"].split() == ["1000"] * 4
    assert sorted(found["Groups"].split()) == ["10", "1000", "4"]


async def test_insecure_has_all_capabilities_of_its_own_user_namespace(box):
    found = status((await box.run("cat", "/proc/self/status", security="insecure")).output)
    assert found["CapEff"] == found["CapBnd"] != DOCKER_CAPABILITIES
    assert found["Seccomp"] == "0"
    mapped = (await box.run("cat", "/proc/self/uid_map", security="insecure")).output.split()
    assert mapped[0] == "0"
    assert mapped[2] != "4294967295"


async def test_only_the_three_standard_descriptors_are_open(box):
    result = await box.sh("for fd in /proc/self/fd/*; do readlink $fd >/dev/null && echo ${fd##*/}; done")
    assert [line for line in result.lines if line.isdigit()] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("user", "ids"),
    [("", "0 0"), ("app", "1000 1000"), ("1000", "1000 1000"), ("1001", "1001 0"), ("app:adm", "1000 4"),
     ("app:5", "1000 5"), ("2000:3000", "2000 3000"), ("root:app", "0 1000"), ("65535", "65535 0")],
)
async def test_user_is_resolved_in_the_image(box, user, ids):
    assert (await box.sh("echo $(id -u) $(id -g)", user=user)).output.strip() == ids


@pytest.mark.parametrize("user", ["nobody", "-1", "65536", "4294967296", ":", "app:", ":app", "0:evil", "a:b:c"])
async def test_a_user_that_is_not_there_or_out_of_range_is_refused(box, user):
    with pytest.raises(errors.InvalidArgument):
        await box.run("true", user=user)


async def test_home_comes_from_passwd_and_env_is_what_was_given(box):
    result = await box.run("env", user="app", env=[["PATH", "/bin"], ["A", "b c"]])
    assert sorted(line for line in result.lines if not line.startswith(("SHLVL", "PWD"))) == [
        "A=b c", "HOME=/home/app", "PATH=/bin",
    ]


@pytest.mark.parametrize(
    ("args", "code", "part"),
    [(["nope"], 127, "nope: not found in PATH"), (["/nope"], 127, "/nope: no such file"),
     (["/etc"], 126, "ermission denied"), (["/etc/passwd"], 126, "ermission denied"),
     (["/script"], 127, "interpreter /bin/bash does not exist")],
)
async def test_a_command_that_cannot_start_gives_the_shells_codes(box, args, code, part):
    over = box.new_tree()
    await box.tree_of(over, {"script": b"#!/bin/bash\n"})
    result = await box.run(*args, lowers=["base", over])
    assert (result.code, result.outcome["reason"]) == (code, "exit")
    assert part in result.outcome["message"]


async def test_the_exit_code_is_kept(box):
    assert (await box.sh("exit 42")).outcome["exit_code"] == 42


async def test_a_shell_tells_of_a_signal_by_its_code(box):
    assert (await box.sh("sh -c 'kill -9 $$'; exit $?")).outcome["exit_code"] == 137


async def test_proc_is_the_sandboxs_own_and_masked(box):
    result = await box.sh(
        "ls /proc | grep -c '^[0-9]'; cat /proc/keys /proc/timer_list | wc -c; ls /sys/firmware | wc -l;"
        "echo x > /proc/sys/kernel/hostname; echo x > /proc/irq/default_smp_affinity; mkdir /sys/x; true"
    )
    assert int(result.lines[0]) <= 4
    assert result.lines[1].strip() == "0"
    assert result.lines[2].strip() == "0"
    assert result.output.count("Read-only file system") == 3


async def test_user_namespaces_and_mounts_are_refused_inside(box):
    result = await box.sh("unshare -U true; unshare -m true; mount -t tmpfs x /tmp; echo end")
    assert result.lines[-1] == "end"
    assert len(result.lines) == 4


async def test_dev_is_what_a_container_has(box):
    result = await box.sh("ls /dev; echo hi > /dev/null; head -c 4 /dev/zero | wc -c; echo a > /dev/shm/a && cat /dev/shm/a")
    names = set(result.lines[:-2])
    assert {"fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout",
            "tty", "urandom", "zero"} <= names
    assert names <= {"core", "console", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm",
                     "stderr", "stdin", "stdout", "tty", "urandom", "zero"}
    assert result.lines[-2:] == ["4", "a"]


async def test_no_network_is_loopback_only(box):
    result = await box.sh("ls /sys/class/net; ip -o addr show dev lo | grep -c 127.0.0.1")
    assert result.lines == ["lo", "1"]


async def test_the_hosts_network_is_its_own(box):
    result = await box.run("readlink", "/proc/self/ns/net", network="host")
    assert result.output.strip() == os.readlink("/proc/self/ns/net")
    assert (await box.run("ls", "/sys/class/net", network="host")).lines == sorted(os.listdir("/sys/class/net"))


async def test_resolv_conf_hosts_and_hostname_are_there_and_leave_nothing(box):
    tree = box.new_tree()
    result = await box.sh(
        "cat /etc/hosts; cat /etc/hostname; ls /etc", tree=tree, hostname="builder1",
        hosts=[["db", "10.1.2.3"]],
    )
    assert "builder1" in result.lines
    assert any(line.split() == ["10.1.2.3", "db"] for line in result.lines)
    assert "resolv.conf" in result.lines
    assert sorted(os.listdir(box.upper(tree) / "etc")) == []
    assert sorted(os.listdir(box.upper(tree))) == ["etc"]


async def test_what_a_command_writes_is_in_its_tree(box):
    tree = box.new_tree()
    await box.sh("echo hi > /file; rm /etc/group; mkdir -p /a/b", tree=tree)
    upper = box.upper(tree)
    assert (upper / "file").read_text() == "hi\n"
    assert sorted(os.listdir(upper)) == ["a", "etc", "file"]
    assert os.listdir(upper / "etc") == ["group"]
    await box.sh("cat /file; test -e /etc/group && echo there", lowers=["base", tree])


async def test_the_next_step_sees_the_one_before(box):
    tree = box.new_tree()
    await box.sh("echo hi > /file; rm /etc/group", tree=tree)
    result = await box.sh("cat /file; test -e /etc/group || echo gone", lowers=["base", tree])
    assert result.lines == ["hi", "gone"]


async def test_a_missing_working_directory_is_made_and_stays(box):
    tree = box.new_tree()
    result = await box.run("pwd", cwd="/work/deep", tree=tree)
    assert result.output == "/work/deep\n"
    assert (box.upper(tree) / "work/deep").is_dir()


@pytest.mark.parametrize("fd", [3, 5, 7, 9, 20])
async def test_a_working_directory_never_leads_out_through_a_descriptor(box, fd):
    with pytest.raises(errors.BuildError):
        await box.run("ls", "-a", ".", cwd=f"/proc/self/fd/{fd}")


async def test_stdin_is_dev_null_unless_given(box):
    assert (await box.sh("readlink /proc/self/fd/0")).output == "/dev/null\n"
    read_end, write_end = os.pipe()
    os.write(write_end, b"hello\n")
    os.close(write_end)
    assert (await box.run("cat", fds=(read_end,))).output == "hello\n"
    os.close(read_end)


async def test_scratch_has_only_what_is_mounted(box):
    static = {"target": "/bin", "kind": "chain", "lowers": ["base"], "source": "/bin", "readonly": True}
    tree = box.new_tree()
    result = await box.run("/bin/ls", "/", lowers=[], tree=tree, mounts=[static])
    assert result.lines == ["bin", "dev", "etc", "proc", "sys"]
    # As with BuildKit: the places of the kernel's file systems stay.
    assert sorted(os.listdir(box.upper(tree))) == ["dev", "proc", "sys"]


async def test_usage_is_measured(box):
    usage = (await box.sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")).outcome["usage"]
    assert usage["wall"] > 0
    assert usage["user"] + usage["system"] > 0
    assert usage["max_rss"] > 100_000


async def test_a_timeout_ends_the_step(box):
    outcome = (await box.run("sleep", "6000", limits={"timeout": 1})).outcome
    assert outcome["reason"] == "timeout"


async def test_a_full_upper_directory_ends_the_step(box):
    outcome = (await box.sh("dd if=/dev/zero of=/f bs=1M count=64; sleep 60", limits={"upper_bytes": 1 << 20})).outcome
    assert outcome["reason"] == "disk-limit"


async def test_processes_are_limited(box):
    result = await box.sh(
        "i=0; while [ $i -lt 100 ]; do sleep 20 & i=$((i+1)); done; echo all", limits={"pids": 20}
    )
    assert "all" not in result.lines


async def test_large_arguments_pass(box):
    data = base64.b64encode(os.urandom(300_000)).decode()
    files = {"kind": "files", "target": "/dev/pipes", "readonly": True, "files": [["a", data, 0o644]]}
    result = await box.sh("wc -c < /dev/pipes/a", mounts=[files])
    assert result.output.strip() == "300000"


@pytest.mark.parametrize("field", ["network", "security"])
@pytest.mark.parametrize("value", ["", "hots", None, "HOST", "insecure ", 1])
async def test_an_unknown_mode_is_refused(box, field, value):
    with pytest.raises(errors.InvalidArgument):
        await box.run("true", **{field: value})
