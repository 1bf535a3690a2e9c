"""APIClient.build: what docker-py's users rely on."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import pytest
from building import build, texts
from docker.utils.proxy import ProxyConfig

pytestmark = pytest.mark.filterwarnings(
    # docker-py leaves the sockets of streams that it read to the end to the garbage collector.
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # fmt: skip
Tree = Callable[..., Path]
Run = Callable[..., str]


def good(messages: list[Any]) -> str:
    """What a build said that must have been a success."""
    assert "Successfully " in messages[-1].get("stream", ""), messages
    return texts(messages)


PROXY = ProxyConfig(http="b", https="c", ftp="a", no_proxy="d")
PROXY_CHECKS = "RUN " + " && ".join(
    f'test "${name}" = {value}'
    for name, value in {
        "HTTP_PROXY": "b", "http_proxy": "b", "HTTPS_PROXY": "c", "https_proxy": "c",
        "NO_PROXY": "d", "no_proxy": "d",
    }.items()
)  # fmt: skip


def test_the_clients_proxies_reach_run_steps_and_not_the_image(
    api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_proxy_configs", PROXY)
    text = f'FROM busybox\n{PROXY_CHECKS} && test "$FTP_PROXY$ftp_proxy" = aa\n'
    good(build(api, text, tag="py/proxy"))
    assert not any("PROXY" in entry for entry in api.inspect_image("py/proxy")["Config"]["Env"])


def test_build_args_win_over_the_clients_proxies(
    api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_proxy_configs", PROXY)
    text = f'FROM busybox\n{PROXY_CHECKS} && echo "ftp: $FTP_PROXY $ftp_proxy"\n'
    said = good(build(api, text, nocache=True, buildargs={"FTP_PROXY": "XXX", "ftp_proxy": "xxx"}))
    assert "ftp: XXX xxx\n" in said


def test_a_build_streams_messages(api: Any) -> None:
    text = "FROM busybox\nRUN mkdir -p /tmp/test\nEXPOSE 8080\nADD http://127.0.0.1:1/x /tmp/x\n"
    messages = build(api, text)
    assert texts(messages).startswith("Step 1/4 : FROM busybox\n")
    assert "errorDetail" in messages[-1]


def test_a_build_streams_raw_bytes_too(api: Any) -> None:
    chunks = list(api.build(fileobj=io.BytesIO(b"FROM busybox\n")))
    assert b"Successfully built" in b"".join(chunks)


def test_the_dockerignore_of_a_directory_applies(api: Any, tree: Tree, run: Run) -> None:
    ignore = (
        "ignored\nDockerfile\n.dockerignore\n ignored-with-spaces \n!ignored/subdir/excepted-file\n"
        "! ignored/subdir/excepted-with-spaces  \n\n#*\n"
    )
    path = tree(
        {
            "Dockerfile": "FROM busybox\nADD . /test\n", ".dockerignore": ignore, "not-ignored": "x", "#file.txt": "x",
            "ignored-with-spaces": "x", "ignored/subdir/file": "x", "ignored/subdir/excepted-file": "x",
            "ignored/subdir/excepted-with-spaces": "x",
        }
    )  # fmt: skip
    good(list(api.build(path=str(path), tag="py/ignore", decode=True)))
    assert sorted(run("py/ignore", "find", "/test", "-type", "f").split()) == [
        "/test/#file.txt",
        "/test/ignored/subdir/excepted-file",
        "/test/ignored/subdir/excepted-with-spaces",
        "/test/not-ignored",
    ]


def test_a_dockerignore_of_blank_lines_ignores_nothing(api: Any, tree: Tree) -> None:
    text = "FROM busybox\nCOPY . /c\nRUN cat /c/kept\n"
    path = tree({"Dockerfile": text, ".dockerignore": "   \n\n\t\t\n\t     ", "kept": "kept\n"})
    assert "\nkept\n" in good(list(api.build(path=str(path), nocache=True, decode=True)))


def test_build_args_are_expanded(api: Any) -> None:
    good(build(api, "FROM scratch\nARG test\nUSER $test\n", tag="py/args", buildargs={"test": "OK"}))
    assert api.inspect_image("py/args")["Config"]["User"] == "OK"


def test_a_size_of_shared_memory_is_taken(api: Any) -> None:
    text = "FROM busybox\nRUN df -k /dev/shm\n"
    assert " 131072 " in good(build(api, text, shmsize=134217728, nocache=True))


def test_the_default_isolation_is_taken(api: Any) -> None:
    good(build(api, "FROM scratch\nCMD [\"isolated\"]\n", tag="py/isolation", isolation="default"))
    assert api.inspect_image("py/isolation")["Config"]["Cmd"] == ["isolated"]


def test_labels_reach_the_image(api: Any) -> None:
    good(build(api, "FROM scratch\n", tag="py/labels", labels={"test": "OK"}))
    assert api.inspect_image("py/labels")["Config"]["Labels"] == {"test": "OK"}


def test_cache_from_names_the_images_whose_steps_may_be_used(api: Any) -> None:
    text = "FROM busybox\nENV FOO=bar\nRUN touch baz\nRUN touch bax\n"
    good(build(api, text, tag="py/build1"))
    again = build(api, text, tag="py/build2", cache_from=["py/build1"])
    assert good(again).count("Using cache") == 3
    api.remove_image("py/build2")
    assert "Using cache" not in good(build(api, text, tag="py/build2", cache_from=["nosuchtag"]))


def test_a_build_ends_at_its_target(api: Any) -> None:
    text = "FROM busybox AS first\nRUN touch /a\nFROM busybox\nONBUILD RUN echo no\n"
    assert "Step 2/2" in good(build(api, text, target="first", tag="py/target"))
    assert not api.inspect_image("py/target")["Config"]["OnBuild"]


def test_network_none_has_no_network_and_a_failed_build_no_image(api: Any) -> None:
    messages = build(
        api, "FROM busybox\nRUN ping -c1 pingtarget.example\n", network_mode="none", tag="py/none"
    )
    assert messages[-1]["errorDetail"]["code"] == 1
    assert messages[-1]["error"] == messages[-1]["errorDetail"]["message"]
    with pytest.raises(docker.errors.NotFound):
        api.inspect_image("py/none")


def test_a_network_that_is_not_there_is_an_error(api: Any) -> None:
    with pytest.raises(docker.errors.APIError):
        build(api, "FROM busybox\nRUN true\n", network_mode="nosuchnetwork")


def test_extra_hosts_stand_in_etc_hosts(api: Any, run: Run) -> None:
    text = "FROM busybox\nRUN cp /etc/hosts /hosts-file\n"
    hosts = {"extrahost.local.test": "127.0.0.1", "hello.world.test": "127.0.0.1"}
    good(build(api, text, tag="py/hosts", extra_hosts=hosts))
    text = run("py/hosts", "cat", "/hosts-file")
    assert "127.0.0.1\textrahost.local.test" in text
    assert "127.0.0.1\thello.world.test" in text


def test_squash_makes_one_layer_of_all_steps(api: Any, run: Run) -> None:
    text = "FROM busybox\nRUN echo a > /1; echo x > /gone\nRUN echo b > /2\nRUN echo c > /3; rm /gone\n"
    good(build(api, text, tag="py/nosquash"))
    good(build(api, text, tag="py/squash", squash=True))
    plain, squashed = (api.inspect_image(f"py/{name}") for name in ("nosquash", "squash"))
    assert len(plain["RootFS"]["Layers"]) == 4
    assert len(squashed["RootFS"]["Layers"]) == 2
    assert squashed["RootFS"]["Layers"][0] == plain["RootFS"]["Layers"][0]
    assert run("py/squash", "sh", "-c", "cat /1 /2 /3; ls /gone 2>&1 || true").startswith("a\nb\nc\n")
    assert "merge" in api.history("py/squash")[0]["Comment"]


def test_standard_error_is_coloured(api: Any) -> None:
    messages = build(api, "FROM busybox\nRUN sh -c \">&2 echo 'a ~ b'\"\n", nocache=True)
    assert "\x1b[91ma ~ b\n\x1b[0m" in [message.get("stream") for message in messages]


def test_a_compressed_context_is_unpacked(api: Any, tree: Tree) -> None:
    path = tree({"Dockerfile": "FROM busybox\nADD . /test\nRUN cat /test/packed\n", "packed": "packed\n"})
    assert "\npacked\n" in good(list(api.build(path=str(path), gzip=True, nocache=True, decode=True)))


def test_gzip_and_an_encoding_of_ones_own_do_not_go_together(api: Any) -> None:
    with pytest.raises(docker.errors.DockerException):
        api.build(path=".", gzip=True, encoding="text/html")


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_a_custom_context_of_a_stated_encoding_is_taken(api: Any, encoding: str) -> None:
    import gzip

    from building import tar_of

    body = tar_of({"Dockerfile": b"FROM scratch\nCOPY a /\n", "a": b"x"})
    data = gzip.compress(body) if encoding == "gzip" else body
    good(list(api.build(
        fileobj=io.BytesIO(data), custom_context=True, encoding=encoding, decode=True, tag=f"py/{encoding}",
    )))  # fmt: skip
    assert len(api.inspect_image(f"py/{encoding}")["RootFS"]["Layers"]) == 1


def test_an_invalid_platform_is_refused(api: Any) -> None:
    with pytest.raises(docker.errors.APIError, match=r"unknown operating system|invalid platform"):
        build(api, "FROM busybox\n", platform="foobar")


def test_a_dockerfile_outside_the_context_stays_outside(api: Any, tree: Tree, run: Run) -> None:
    path = tree({"file.txt": "x", ".dockerignore": ".dockerignore\n"})
    other = tree({"Dockerfile": "FROM busybox\nCOPY . /src\nWORKDIR /src\n"}, "other")
    options = {"path": str(path), "dockerfile": str(other / "Dockerfile")}
    good(list(api.build(**options, tag="py/outside", decode=True)))
    assert run("py/outside", "ls", "-a").split() == [".", "..", "file.txt"]


INSIDE = "FROM busybox\nCOPY . /src\nWORKDIR /src\n"


@pytest.mark.parametrize("absolute", [False, True])
def test_a_dockerfile_of_another_name_is_found(
    api: Any, tree: Tree, run: Run, absolute: bool
) -> None:
    path = tree({"file.txt": "x", "custom.dockerfile": INSIDE})
    name = str(path / "custom.dockerfile") if absolute else "custom.dockerfile"
    good(list(api.build(path=str(path), dockerfile=name, tag="py/custom", decode=True)))
    assert run("py/custom", "ls", "-a").split() == [".", "..", "custom.dockerfile", "file.txt"]


def test_a_nested_dockerfile_is_found(api: Any, tree: Tree, run: Run) -> None:
    path = tree({"file.txt": "x", "hello/world/custom.dockerfile": INSIDE})
    name = "hello/world/custom.dockerfile"
    good(list(api.build(path=str(path), dockerfile=name, tag="py/nested", decode=True)))
    assert run("py/nested", "ls", "-a").split() == [".", "..", "file.txt", "hello"]


def test_limits_of_the_container_are_taken(api: Any) -> None:
    limits = {"memory": 1 << 27, "memswap": 1 << 28, "cpushares": 10, "cpusetcpus": "0"}
    said = good(build(api, "FROM busybox\nRUN nproc\n", container_limits=limits, nocache=True))
    # Where no controller is delegated the daemon says so; else one processor is what the step sees.
    assert "\n1\n" in said or "not enforced" in said


def test_the_build_cache_can_be_pruned(api: Any) -> None:
    assert isinstance(api.prune_builds()["SpaceReclaimed"], int)
