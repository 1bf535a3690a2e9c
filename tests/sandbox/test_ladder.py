"""The rungs below the best: fewer ids, one id, no network, a masked /proc; and what doctor says of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sandboxes import opened

from ocibuildd import errors
from ocibuildd.sandbox import probe, userns

HOST = {
    "user": "ann", "root": False, "kernel": "6.8", "newuidmap": ["setuid", "setuid"],
    "ids": {"mode": "shifted", "count": 65536, "direct": False, "notes": []},
    "max_user_namespaces": 10000, "unprivileged_userns_clone": None, "apparmor_restricts": False,
    "tun": "", "fuse": "", "file_system": "ext4", "no_new_privs": False,
    "programs": {"pasta": "/usr/bin/pasta", "slirp4netns": "", "fuse-overlayfs": "", "git": "/usr/bin/git"},
}
NSD = {
    "network": {"mode": "pasta"}, "cgroup": "v2", "controllers": ["memory", "pids", "cpu"],
    "selftest": {"overlay": "", "rename": "", "proc": ""}, "overlay": "kernel",
}


def test_a_host_that_has_everything_is_all_ok():
    assert {row.level for row in probe.requirements(HOST, NSD)} == {"ok"}


@pytest.mark.parametrize(
    ("host", "nsd", "name", "level", "fix"),
    [
        ({"unprivileged_userns_clone": 0}, {}, "user namespaces", "missing", "unprivileged_userns_clone=1"),
        ({"max_user_namespaces": 0}, {}, "user namespaces", "missing", "max_user_namespaces="),
        ({"max_user_namespaces": 10}, {}, "user namespaces", "degraded", "max_user_namespaces="),
        ({"apparmor_restricts": True}, {}, "apparmor", "missing", "apparmor_parser -r"),
        ({"ids": {"mode": "single", "count": 1, "direct": False, "notes": ["none"]}}, {}, "subordinate ids",
         "degraded", "--add-subuids"),
        ({"ids": {"mode": "identity", "count": 1000, "direct": False, "notes": []}}, {}, "subordinate ids",
         "degraded", "--add-subuids"),
        ({"newuidmap": ["", ""]}, {}, "newuidmap", "degraded", "install uidmap"),
        ({"newuidmap": ["none", "setuid"]}, {}, "newuidmap", "degraded", "setcap"),
        ({"no_new_privs": True}, {}, "newuidmap", "degraded", "NoNewPrivileges"),
        ({}, {"selftest": {"overlay": "Invalid argument", "proc": ""}}, "overlayfs", "missing", "state_dir"),
        ({}, {"selftest": {"rename": "renamed"}}, "overlayfs", "missing", "state_dir"),
        ({}, {"overlay": "fuse"}, "overlayfs", "degraded", "state_dir"),
        ({}, {"overlay": "copy", "selftest": {"overlay": "Invalid argument"}}, "overlayfs", "degraded", "state_dir"),
        ({}, {"selftest": {"proc": "Operation not permitted"}}, "procfs", "degraded", "systempaths=unconfined"),
        ({"tun": "Permission denied"}, {"network": {"mode": "none"}}, "network", "degraded", "chmod 666"),
        ({"programs": {**HOST["programs"], "pasta": ""}}, {"network": {"mode": "none"}}, "network", "degraded",
         "install passt"),
        ({}, {"network": {"mode": "pasta", "resolvers": []}}, "network", "degraded", "--dns"),
        ({}, {"cgroup": "none", "controllers": []}, "control groups", "degraded", "Delegate=yes"),
        ({}, {"controllers": ["pids"]}, "control groups", "degraded", "Delegate=yes"),
        ({"programs": {**HOST["programs"], "git": ""}}, {}, "git", "degraded", "install git"),
    ],
)
def test_each_lack_has_a_cost_and_a_command(host, nsd, name, level, fix):
    rows = {row.name: row for row in probe.requirements(HOST | host, NSD | nsd)}
    assert rows[name].level == level
    assert fix in rows[name].fix
    assert rows[name].cost
    assert {row.level for row in rows.values() if row.name != name} == {"ok"}


def plan(**changes):
    facts = {"uid": 1000, "gid": 1000, "name": "ann", "subuid": "ann:100000:65536", "subgid": "ann:100000:65536",
             "direct": False, "newuidmap": True}
    return userns.plan(**(facts | changes))


def test_enough_subordinate_ids_give_the_shifted_mode():
    found = plan()
    assert (found.mode, found.shift, found.count) == ("shifted", 1, 65536)
    assert found.uids == ((0, 1000, 1), (1, 100000, 65536))
    assert found.inner_map() == "0 1 65536\n"


def test_an_inner_map_has_a_line_for_each_range():
    found = plan(subuid="ann:100000:65000\nann:300000:9999", subgid="1000:100000:65536")
    assert found.uids == ((0, 1000, 1), (1, 100000, 65000), (65001, 300000, 536))
    assert found.inner_map() == "0 1 65000\n65000 65001 536\n"


def test_few_subordinate_ids_give_the_identity_mode():
    found = plan(subuid="ann:100000:1000")
    assert (found.mode, found.shift, found.count) == ("identity", 0, 1001)
    assert found.inner_map() == "0 0 1\n1 1 1000\n"


@pytest.mark.parametrize("changes", [{"subuid": ""}, {"subgid": "bob:1:2"}, {"newuidmap": False}])
def test_no_subordinate_ids_or_no_newuidmap_gives_one_id(changes):
    found = plan(**changes)
    assert (found.mode, found.count, found.uids) == ("single", 1, ((0, 1000, 1),))
    assert found.notes


def test_root_without_an_entry_takes_the_first_free_range():
    found = plan(uid=0, gid=0, name="root", direct=True)
    assert found.uids == ((0, 0, 1), (1, 165536, 65536))


def test_root_of_a_container_with_few_ids_uses_those():
    few = "0 1000 1\n1 100000 65536"
    found = plan(uid=0, gid=0, name="root", subuid="", subgid="", direct=True,
                 uid_map="0 100000 65536", gid_map="0 100000 65536")
    assert found.uids == ((0, 0, 1), (1, 1, 65535))
    assert found.mode == "shifted"
    assert userns.mapped_here([(1, 65536)], few)
    assert not userns.mapped_here([(0, 65536)], few)


def test_root_of_a_rootless_container_uses_the_ids_above_its_own():
    rootless = "0 1000 1\n1 100000 65536"
    found = plan(uid=0, gid=0, name="root", subuid="", subgid="", direct=True, uid_map=rootless, gid_map=rootless)
    assert found.uids == ((0, 0, 1), (1, 1, 65536))
    assert found.mode == "shifted"
    alone = plan(uid=0, gid=0, name="root", subuid="", subgid="", direct=True, uid_map="0 1000 1", gid_map="0 1000 1")
    assert alone.mode == "single"


def test_a_plan_survives_its_way_to_nsd():
    assert userns.IdPlan.load(plan().dump()) == plan()


@pytest.mark.parametrize("mode", ["identity", "single"])
async def test_a_step_runs_on_a_lower_rung(state_dir, mode):
    box = await opened(state_dir, ids=mode)
    try:
        assert box.client.capabilities.ids == mode
        assert box.client.capabilities.shift == 0
        tree = box.new_tree()
        result = await box.sh("id -u; cat /etc/hostname; echo x > /f; stat -c %u /f /etc", tree=tree)
        assert result.lines == ["0", "buildkitsandbox", "0", "0"]
        assert (box.upper(tree) / "f").stat().st_uid == os.geteuid()
        chown = await box.sh("chown 5:5 /f", lowers=["base", tree])
        assert (chown.code == 0) == (mode == "identity")
    finally:
        await box.client.close()


async def test_a_rung_that_does_not_exist_is_refused(state_dir):
    with pytest.raises(errors.Unsupported):
        await opened(state_dir, ids="best")


async def test_without_a_network_default_steps_say_what_is_missing(state_dir):
    box = await opened(state_dir, network_mode="none")
    try:
        assert box.client.capabilities.network == "none"
        with pytest.raises(errors.Unsupported):
            await box.run("true", network="default")
        assert (await box.sh("true", network="none")).code == 0
    finally:
        await box.client.close()


async def test_doctor_looks_anew(state_dir):
    box = await opened(state_dir)
    try:
        rows = {row.name: row for row in await box.client.doctor()}
        assert rows["overlayfs"].level == rows["procfs"].level == "ok"
        assert {row.name for row in box.client.capabilities.requirements} == set(rows)
    finally:
        await box.client.close()


MASKED = """
import asyncio, sys, tempfile
from pathlib import Path
from fixtures import remove_tree
from sandboxes import opened

async def main():
    state = Path(tempfile.mkdtemp())
    box = await opened(state)
    print(box.client.capabilities.proc)
    print((await box.sh("echo $$ $(cat /proc/self/comm); echo x > /proc/self/oom_score_adj || echo refused")).output)
    print((await box.sh("stat -f -c %t /sys; touch /sys/x || echo sys-refused")).output)
    await box.client.close()
    remove_tree(state)

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mask /proc as a container runtime does")
def test_in_a_container_with_masked_proc_and_sys_steps_see_those_read_only():
    masks = "mount -t tmpfs none /proc/bus && mount -t tmpfs none /sys/firmware"
    script = f"mount --make-rprivate / && {masks} && exec \"$@\""
    command = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-c", MASKED]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split()[:3] == ["bind", "1", "cat"], done.stderr
    assert "refused" in done.stdout
    assert {"62656572", "sys-refused"} <= set(done.stdout.split())


AMBIENT = """
import asyncio, tempfile
from pathlib import Path
from fixtures import remove_tree
from sandboxes import opened

async def main():
    state = Path(tempfile.mkdtemp(dir="/tmp"))
    box = await opened(state)
    print(box.client.capabilities.ids)
    print((await box.sh("grep CapEff /proc/self/status; touch /f; chown 5:6 /f; stat -c %u:%g /f")).output)
    await box.client.close()
    remove_tree(state)

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a service's ambient capabilities")
def test_with_ambient_capabilities_and_no_new_privileges_we_write_the_maps_ourselves():
    import pwd

    if "builder" not in [entry.pw_name for entry in pwd.getpwall()]:
        pytest.skip("there is no user called builder")
    ambient = ["--inh-caps", "+setuid,+setgid", "--ambient-caps", "+setuid,+setgid", "--no-new-privs"]
    user = ["--reuid", "builder", "--regid", "builder", "--init-groups"]
    command = ["setpriv", *user, *ambient, sys.executable, "-c", AMBIENT]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "HOME": "/"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False, cwd="/",
    )
    assert done.stdout.split() == ["shifted", "CapEff:", "00000000a80425fb", "5:6"], done.stderr


REFUSED = """
import asyncio, tempfile
from pathlib import Path
from fixtures import remove_tree
from sandboxes import opened

async def main():
    state = Path(tempfile.mkdtemp())
    box = await opened(state)
    rows = {row.name: row for row in await box.client.doctor()}
    print(box.client.capabilities.ids, rows["subordinate ids"].level, rows["newuidmap"].level)
    print((await box.sh("id -u; touch /f && echo made")).output)
    await box.client.close()
    remove_tree(state)

asyncio.run(main())
"""


def confined(program: str, *before: str) -> subprocess.CompletedProcess[str]:
    """Run a program of Python after other commands' work."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [*before, sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes its maps without newuidmap")
def test_where_newuidmap_gains_no_rights_steps_run_with_one_id():
    done = confined(REFUSED, "setpriv", "--no-new-privs")
    assert done.stdout.split() == ["single", "degraded", "degraded", "0", "made"], done.stderr


def test_maps_that_are_refused_are_told_with_their_fix():
    nsd = NSD | {"ids": "single", "count": 1, "notes": [userns.REFUSED]}
    rows = {row.name: row for row in probe.requirements(HOST, nsd)}
    assert [rows[name].level for name in ("subordinate ids", "newuidmap")] == ["degraded"] * 2
    assert all("setcap" in rows[name].fix for name in ("subordinate ids", "newuidmap"))


def test_a_set_mode_is_not_lowered_when_its_maps_are_refused(monkeypatch):
    def refused(*_):
        raise AssertionError("one id was taken")

    monkeypatch.setattr(userns, "write_single_maps", refused)
    monkeypatch.setattr(userns, "_map_when_told", lambda *_: userns.MAPPER_FAILED)
    monkeypatch.setattr(userns.syscalls, "unshare", lambda _: None)
    with pytest.raises(errors.Unsupported, match="id maps"):
        userns.enter(plan(), strict=True)


FILTERED = """
import os, sys
from ocibuildd import syscalls
from ocibuildd.daemon import main
from ocibuildd.sandbox import seccomp, spec
syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
syscalls.seccomp_filter(seccomp.filter_bytes(os.uname().machine, frozenset(spec.CAPABILITIES)))
sys.argv[1:] = ["--doctor"]
sys.exit(main())
"""


def test_under_dockers_own_filter_doctor_says_what_to_start_the_container_with(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    done = confined(FILTERED)
    assert done.returncode == 1, done.stderr
    row = json.loads(done.stdout)[0]
    assert (row["name"], row["level"]) == ("sandbox", "missing")
    assert "seccomp=unconfined" in row["fix"]
    assert list(tmp_path.iterdir()) == []
