"""RunSpec and USER, checked and decided without a sandbox; the wire between the processes."""

from __future__ import annotations

import base64
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocibuildd import errors
from ocibuildd.sandbox import spec, users, wire

PASSWD = b"root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001::/home/ann:/bin/sh\n7:x:0:0::/:/bin/sh\nbad:x:70000:0::/:\n"
GROUP = b"root:x:0:\nstaff:x:50:ann,bob\nann:x:1001:\nhuge:x:70000:ann\n"
SPEC = {
    "lowers": ["a"], "tree": "b", "args": ["true"], "env": [], "cwd": "/", "user": "", "hostname": "",
    "network": "none", "security": "sandbox", "mounts": [], "hosts": [], "dns": {}, "limits": {}, "tty": False,
    "no_new_privileges": False, "step": "s",
}


@pytest.mark.parametrize(
    "change",
    [
        {"args": []}, {"args": [""]}, {"args": ["a\0b"]}, {"args": [1]}, {"args": "true"}, {"args": ["x"] * 5000},
        {"args": ["x" * (3 << 20)]}, {"env": [["A=B", "c"]]}, {"env": [["", "c"]]}, {"env": [["A"]]}, {"env": [["A", 1]]},
        {"cwd": 5}, {"cwd": "/a\0"}, {"user": 0.5}, {"user": "a\0"}, {"hostname": "a b"}, {"hostname": "x" * 64},
        {"hostname": "a\n"}, {"network": "bridge"}, {"security": "unconfined"}, {"security": ["insecure"]},
        {"lowers": ["../x"]}, {"lowers": [".hidden"]}, {"lowers": "abc"}, {"lowers": [""]}, {"tree": "a/b"}, {"tree": ".."},
        {"step": "A b"}, {"step": "../x"}, {"tty": 1}, {"no_new_privileges": "no"}, {"limits": {"memory": -1}},
        {"limits": {"memory": "1g"}}, {"limits": {"magic": 1}}, {"limits": {"pids": True}}, {"limits": [1]},
        {"hosts": [["a"]]}, {"hosts": [["a", 1]]}, {"dns": {"nameserver": []}}, {"dns": {"servers": "1.1.1.1"}},
        {"mounts": [{"kind": "bind", "target": "/x", "readonly": True}]},
        {"mounts": [{"kind": "tmpfs", "target": "/x", "readonly": False}] * 129},
        {"mounts": [{"kind": "tmpfs", "target": "/x", "readonly": False, "size": -1}]},
        {"mounts": [{"kind": "tmpfs", "target": "/x", "readonly": False, "mode": 0o10000}]},
        {"mounts": [{"kind": "tmpfs", "target": "/x", "readonly": False, "uid": 65536}]},
        {"mounts": [{"kind": "cache", "target": "/x", "readonly": False, "path": "rel"}]},
        {"mounts": [{"kind": "dir", "target": "/x", "readonly": True, "fd": 0}]},
        {"mounts": [{"kind": "secret", "target": "/x", "readonly": True, "data": "no base64!"}]},
        {"mounts": [{"kind": "files", "target": "/x", "readonly": True, "files": [["../a", "", 0o644]]}]},
        {"mounts": [{"kind": "files", "target": "/x", "readonly": True, "files": [["a", ""]]}]},
        {"mounts": [{"kind": "chain", "target": "/x", "readonly": True, "lowers": ["../../etc"]}]},
    ],
)
def test_what_can_not_be_meant_is_refused(change):
    with pytest.raises(errors.InvalidArgument):
        spec.plan(SPEC | change)


def test_a_plan_has_what_was_asked_for():
    plan = spec.plan(SPEC | {"cwd": "a/../b//c", "env": [["A", "1"], ["A", "2"]], "limits": {"timeout": 1.2, "memory": 0}})
    assert plan.cwd == "/b/c"
    assert plan.env == ((b"A", b"2"),)
    assert plan.limits == {"timeout": 2}
    assert plan.capabilities == frozenset(spec.CAPABILITIES.values())
    assert sum(1 << n for n in plan.capabilities) == 0xA80425FB
    assert not plan.insecure


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None, database=None)
def test_no_mount_target_reaches_a_kernel_file_system(text):
    try:
        target = spec.target(text)
    except errors.InvalidArgument:
        return
    assert target.startswith("/")
    assert ".." not in target.split("/")
    assert target.split("/")[1] not in {"", "proc", "sys"}
    assert not target.startswith("/dev") or target.split("/")[1] != "dev" or target.split("/")[2] in {"shm", "pipes"}


@pytest.mark.parametrize(
    ("user", "uid", "gid", "groups"),
    [
        ("", 0, 0, (0,)), ("root", 0, 0, (0,)), ("ann", 1000, 1001, (1001, 50)), ("1000", 1000, 1001, (1001, 50)),
        ("ann:staff", 1000, 50, (50,)), ("ann:4", 1000, 4, (4,)), ("5:6", 5, 6, (6,)), ("5", 5, 0, (0,)),
        ("7", 7, 0, (0,)), ("65535", 65535, 0, (0,)),
    ],
)
def test_a_user_is_who_the_image_says(user, uid, gid, groups):
    found = users.identify(user, PASSWD, GROUP)
    assert (found.uid, found.gid, found.groups) == (uid, gid, groups)


@pytest.mark.parametrize(
    "user",
    ["nobody", ":", "ann:", ":staff", "ann:x", "a:b:c", "-1", "+5", "65536", "4294967296", "99999999999", "bad", "ann:huge",
     "ann:65536", " 0", "0x0", "０"],
)
def test_a_user_that_can_not_be_is_refused(user):
    with pytest.raises(errors.InvalidArgument):
        users.identify(user, PASSWD, GROUP)


@given(st.binary(max_size=300), st.binary(max_size=300), st.text(max_size=20))
@settings(max_examples=200, deadline=None, database=None)
def test_ids_stay_in_range_whatever_the_files_hold(passwd, group, user):
    try:
        found = users.identify(user, PASSWD + passwd, GROUP + group)
    except errors.InvalidArgument:
        return
    assert all(0 <= number <= 65535 for number in (found.uid, found.gid, *found.groups))


@pytest.mark.parametrize("size", [10, wire.INLINE_LIMIT - 20, wire.INLINE_LIMIT + 1, 3 << 20])
def test_messages_of_any_size_arrive_with_their_descriptors(size):
    ours, theirs = wire.pair()
    with ours, theirs:
        text = base64.b64encode(os.urandom(size)).decode()[:size]
        read_end, write_end = os.pipe()
        wire.send(ours, {"text": text}, [write_end])
        os.close(write_end)
        message, fds = wire.receive(theirs)
        assert message == {"text": text}
        assert not os.get_inheritable(fds[0])
        os.write(fds[0], b"x")
        assert os.read(read_end, 1) == b"x"
        wire.close_all([*fds, read_end])


def test_a_closed_socket_is_the_end():
    ours, theirs = wire.pair()
    ours.close()
    with theirs:
        assert wire.receive(theirs) is None


def test_too_many_descriptors_are_refused():
    ours, theirs = wire.pair()
    with ours, theirs, pytest.raises(ValueError, match="251"):
        wire.send(ours, {}, [0] * 251)
