"""RUN as a spec: what a step sees, and what it never sees."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest

from ocibuildd.errors import InvalidArgument
from ocibuildd.executor.run import MountInput, Surroundings, run_spec
from ocibuildd.model.graph import InlineFile, Mount, Run
from ocibuildd.ports import RunSpec

RUN = Run(("sh", "-c", "x"), (("A", "1"),))


def spec(op: Run, behind: dict[int, MountInput] | None = None, **around: object) -> RunSpec:
    return run_spec(op, lowers=["1"], tree="2", behind=behind or {}, step="s",
                    around=Surroundings(**around))  # type: ignore[arg-type]


def test_proxies_are_seen_after_the_steps_own_variables() -> None:
    made = spec(replace(RUN, proxy_env=(("http_proxy", "p"),)))
    assert made["env"] == [["A", "1"], ["http_proxy", "p"]]


def test_a_secret_is_a_file_of_its_owner() -> None:
    op = replace(RUN, mounts=(Mount("secret", "", id="t", uid=5),))
    (mount,) = spec(op, secrets={"t": b"v"})["mounts"]
    assert (mount["kind"], mount["target"], mount["mode"], mount["uid"]) == (
        "secret", "/run/secrets/t", 0o400, 5,
    )
    assert base64.b64decode(mount["data"]) == b"v"


def test_a_secret_may_be_a_variable_and_no_file() -> None:
    op = replace(RUN, mounts=(Mount("secret", "", id="t", env="TOKEN"),))
    made = spec(op, secrets={"t": b"v"})
    assert made["env"][-1] == ["TOKEN", "v"]
    assert made["mounts"] == []


@pytest.mark.parametrize("kind", ["secret", "ssh"])
def test_what_is_required_must_be_given_and_the_rest_is_left_out(kind: str) -> None:
    mount = Mount(kind, "/x", id="t")  # type: ignore[arg-type]
    assert spec(replace(RUN, mounts=(mount,)))["mounts"] == []
    with pytest.raises(InvalidArgument, match=f"{kind} t"):
        spec(replace(RUN, mounts=(replace(mount, required=True),)))


def test_an_agents_socket_is_named_in_the_environment() -> None:
    made = spec(replace(RUN, mounts=(Mount("ssh", "", id="default"),)), ssh={"default": "/s"})
    assert made["env"][-1] == ["SSH_AUTH_SOCK", "/run/buildkit/ssh_agent.0"]
    assert made["mounts"][0]["path"] == "/s"


def test_mounts_stand_on_what_is_behind_them() -> None:
    op = replace(RUN, mounts=(
        Mount("bind", "/a", input=1, source="/d"), Mount("bind", "/b", input=2),
        Mount("cache", "/c", cache_id="x", readonly=False), Mount("tmpfs", "/t", size=9),
    ))
    made = spec(op, {0: MountInput(lowers=["7"]), 1: MountInput(lowers=["8"]), 2: MountInput(path="/p")})
    assert [m["kind"] for m in made["mounts"]] == ["chain", "chain", "cache", "tmpfs"]
    assert made["mounts"][0]["source"] == "/d"
    assert not made["mounts"][2]["readonly"]


def test_heredocs_are_files_at_dev_pipes() -> None:
    made = spec(replace(RUN, files=(InlineFile("EOF", b"hi"),)))
    assert made["mounts"][0]["target"] == "/dev/pipes"


def test_limits_of_nothing_are_left_out() -> None:
    assert spec(RUN, limits={"memory": 0, "pids": 7})["limits"] == {"pids": 7}
