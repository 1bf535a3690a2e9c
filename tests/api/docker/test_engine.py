"""The corners of the Engine API: paths, references, filters, events, and what there is not."""

from __future__ import annotations

import io
import json
import tarfile
import time
from typing import Any
from urllib.parse import quote

import pytest
from docker_engine import BASE, Engine, tar_of


def body(engine: Engine, path: str) -> Any:
    return json.loads(engine("GET", path).body)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"), ("GET", "/nosuch"), ("GET", "/v1.41/nosuch"), ("GET", "/info/"), ("GET", "/containers/x"),
        ("PUT", "/images/json"), ("GET", "/build"), ("PATCH", "/v1.44/info"), ("GET", "/v2/info"),
    ],
)  # fmt: skip
def test_a_path_that_docker_does_not_know_is_not_found(engine: Engine, method: str, path: str) -> None:
    answer = engine(method, path)
    assert (answer.status, answer.messages) == (404, [{"message": "page not found"}])
    assert answer.headers["Api-Version"]


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/containers/x/pause", 404, "No such container: x"),
        ("POST", "/containers/x/exec", 404, "No such container: x"),
        ("POST", "/containers/x/kill", 404, "Cannot kill container: x: No such container: x"),
        ("GET", "/containers/x/export", 404, "No such container: x"),
        ("PUT", "/containers/x/archive?path=/", 404, "No such container: x"),
        ("POST", "/exec/x/start", 404, "No such exec instance: x"),
        ("DELETE", "/plugins/x", 404, 'plugin "x" not found'),
        ("POST", "/plugins/pull?remote=x", 501, "keeps no containers"),
        ("POST", "/swarm/leave", 503, "This node is not part of a swarm"),
        ("POST", "/services/create", 503, "This node is not a swarm manager"),
        ("DELETE", "/nodes/x", 503, "This node is not a swarm manager"),
        ("POST", "/session", 400, "no upgrade proto in request"),
        ("GET", "/images/search?term=x&limit=1000", 400, "Limit 1000 is outside the range of [1, 100]"),
        ("GET", "/events?since=2&until=1", 400, "`since` time (2) cannot be after `until` time (1)"),
        ("GET", "/images/json?filters=x", 400, "invalid filter: invalid character 'x'"),
        ("POST", "/images/create?fromImage=scratch&tag=x", 403, "'scratch' is a reserved name"),
        ("POST", "/images/create?fromImage=busybox&tag=a:b", 400, "invalid tag format"),
        ("POST", "/images/create?fromImage=busybox&tag=sha256:00", 400, "invalid tag format"),
        ("POST", "/images/create?fromImage=busybox&platform=linux/", 400, '"" is an invalid component of "linux/"'),
        ("POST", "/images/busybox/tag?repo=a&tag=b:c", 400, "invalid tag format"),
        ("POST", "/images/busybox/tag?repo=a:b:c", 400, "invalid reference format"),
        ("GET", "/images/json?filters=" + quote('{"dangling":["x"]}'), 400, "invalid filter 'dangling=[x]'"),
        ("GET", "/containers/json?filters=" + quote('{"bogus":["x"]}'), 400, "invalid filter 'bogus'"),
        ("GET", "/v1.41/volumes?filters=" + quote('{"until":["x"]}'), 400, "invalid filter 'until'"),
        ("POST", "/networks/prune?filters=" + quote('{"dangling":["x"]}'), 400, "invalid filter 'dangling'"),
        ("DELETE", "/volumes/x", 404, "get x: no such volume"),
        ("GET", "/images/" + "0" * 64 + "/json", 404, "No such image: sha256:" + "0" * 64),
    ],
)
def test_what_there_is_not_is_told_in_dockers_words(
    engine: Engine, method: str, path: str, status: int, message: str
) -> None:
    answer = engine(method, path)
    assert answer.status == status
    assert message in answer.error


@pytest.mark.parametrize("name", ["a:b:c", "%20", "a___b"])
def test_a_name_that_is_none_is_refused_in_dockers_words_alone(engine: Engine, name: str) -> None:
    assert engine("GET", f"/images/{name}/json").error == "invalid reference format"


def test_a_volume_that_is_not_there_can_be_removed_by_force(engine: Engine) -> None:
    assert engine("DELETE", "/v1.41/volumes/x?force=1").status == 204


def test_events_may_be_asked_for_since_before_the_epoch(engine: Engine) -> None:
    assert engine("GET", "/events?since=-1&until=1").messages == []


@pytest.mark.parametrize("path", ["/session", "/v1.44/grpc"])
def test_who_wants_buildkits_api_is_told_what_to_do(engine: Engine, path: str) -> None:
    answer = engine("POST", path, headers={"Connection": "Upgrade", "Upgrade": "h2c"})
    assert answer.status == 501
    assert "DOCKER_BUILDKIT=0" in answer.error


@pytest.mark.parametrize(
    ("query", "status", "told"),
    [
        ("repo=api/tagged:a&tag=b", 201, "api/tagged:b"),
        ("repo=docker.io/api/tagged", 201, "api/tagged:latest"),
        ("repo=sha256&tag=x", 400, "ambiguous tag using digest algorithm as name"),
        ("repo=UPPER", 400, "repository name must be lowercase"),
        ("repo=api/x&tag=-x", 400, "invalid tag format"),
        ("repo=a@sha256:" + "0" * 64, 400, "digest reference"),
    ],
)
def test_a_tag_wins_over_one_in_the_repository(engine: Engine, query: str, status: int, told: str) -> None:
    answer = engine("POST", f"/images/busybox/tag?{query}")
    assert answer.status == status
    if status == 201:
        assert body(engine, f"/images/{told}/json")["Id"] == body(engine, "/images/busybox/json")["Id"]
        assert engine("DELETE", f"/images/{told}").messages == [[{"Untagged": told}]]
    else:
        assert told in answer.error


def test_an_image_with_children_is_not_deleted_by_its_id_even_with_force(engine: Engine) -> None:
    parent = engine.build(BASE + "LABEL parent=1\n", "t=api/parent").images[0]
    engine.build("FROM api/parent\nLABEL child=1\n", "t=api/child")
    answer = engine("DELETE", f"/images/{parent[7:15]}?force=1")
    assert answer.status == 409
    assert answer.error == (
        f"conflict: unable to delete {parent[7:19]} (cannot be forced) - image has dependent child images"
    )


def test_arguments_before_the_first_from_are_steps(engine: Engine) -> None:
    text = engine.build("ARG B=busybox\nARG C\nFROM $B\nENV a=b\n").text
    assert text.startswith("Step 1/4 : ARG B=busybox\nStep 2/4 : ARG C\nStep 3/4 : FROM $B\n ---> ")
    assert "Step 4/4 : ENV a=b\n" in text


@pytest.mark.parametrize(
    ("dockerfile", "heads"),
    [
        ("FROM 127.0.0.1:1/x\nRUN a\n", "Step 1/2 : FROM 127.0.0.1:1/x\n"),
        ("ARG X\nFROM 127.0.0.1:1/x\n", "Step 1/2 : ARG X\nStep 2/2 : FROM 127.0.0.1:1/x\n"),
    ],
)
def test_a_base_image_that_cannot_be_had_is_told_below_its_step(
    engine: Engine, dockerfile: str, heads: str
) -> None:
    answer = engine.build(dockerfile)
    assert (answer.status, answer.text) == (200, heads)
    assert answer.error.endswith("dial tcp 127.0.0.1:1: connect: connection refused")


def test_an_empty_continuation_line_is_warned_of_before_the_first_step(engine: Engine) -> None:
    text = engine.build(BASE + "RUN echo a \\\n\n  b\n").text
    assert text.startswith("\x1b[91m[WARNING]: Empty continuation line found in:\n    RUN echo a   b\n")
    assert "\x1b[0mStep 1/2 : FROM busybox\n" in text


def test_forced_removal_is_told_although_rm_is_off(engine: Engine) -> None:
    text = engine.build(BASE + "RUN echo forced\n", "rm=0&forcerm=1&nocache=1").text
    assert "Removing intermediate container" in text


@pytest.mark.parametrize("blocks", [0, 2, 20])
def test_a_tar_of_nothing_has_no_dockerfile(engine: Engine, blocks: int) -> None:
    answer = engine("POST", "/build", bytes(512 * blocks), {"Content-Type": "application/x-tar"})
    assert answer.status == 400
    assert answer.error == "Cannot locate specified Dockerfile: Dockerfile"


def test_a_tar_of_v7_is_taken(engine: Engine) -> None:
    data = tar_of({"Dockerfile": BASE + "RUN echo seven\n"})
    header = bytearray(data[:512])
    header[257:512] = bytes(255)
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    answer = engine("POST", "/build?nocache=1", bytes(header) + data[512:])
    assert "\nseven\n" in answer.text


def test_a_pattern_without_its_bracket_finds_nothing(engine: Engine) -> None:
    assert engine.build(BASE + "COPY [a /x\n").error == "COPY failed: no source files were specified"


def test_a_push_of_what_is_not_there_fails_inside_the_stream(engine: Engine) -> None:
    answer = engine("POST", "/images/127.0.0.1:1/no/such/push?tag=v")
    assert answer.status == 200
    assert answer.messages[0]["status"] == "The push refers to repository [127.0.0.1:1/no/such]"
    assert answer.error == "An image does not exist locally with the tag: 127.0.0.1:1/no/such"


def test_saves_and_prunes_are_events(engine: Engine) -> None:
    start = time.time()
    image = body(engine, "/images/busybox/json")["Id"]
    with tarfile.open(fileobj=io.BytesIO(engine("GET", "/images/busybox/get").body)) as archive:
        assert "manifest.json" in archive.getnames()
    pruned = json.loads(engine("POST", "/images/prune?filters=" + quote('{"label":["nosuch"]}')).body)
    events = engine("GET", f"/events?since={start}&until={time.time() + 0.1}").messages
    assert [event["Actor"]["ID"] for event in events if event["Action"] == "save"] == [image]
    assert [event["Actor"]["Attributes"] for event in events if event["Action"] == "prune"] == [
        {"reclaimed": str(pruned["SpaceReclaimed"])}
    ]
    assert pruned["ImagesDeleted"] is None


def test_the_filter_of_old_names_a_repository(engine: Engine) -> None:
    assert [image["RepoTags"] for image in body(engine, "/v1.40/images/json?filter=busybox")] == [["busybox:latest"]]
    assert len(body(engine, "/v1.41/images/json?filter=nosuch")) > 0


@pytest.mark.parametrize(
    ("steps", "line"),
    [
        ("ONBUILD RUN echo x", "/bin/sh -c #(nop)  ONBUILD RUN echo x"),
        ("EXPOSE 90 80/tcp 70-71", "/bin/sh -c #(nop)  EXPOSE 70-71 80/tcp 90"),
        ('HEALTHCHECK --retries=3 --timeout=2s CMD ["a", "b"]',
         '/bin/sh -c #(nop)  HEALTHCHECK &{["CMD" "a" "b"] "0s" "2s" "0s" \'\\x03\'}'),
        ("ARG X=1\nENV X=2\nRUN true", "/bin/sh -c true"),
        ("ARG X=1\nRUN true", "|1 X=1 /bin/sh -c true"),
    ],
)  # fmt: skip
def test_history_is_written_as_the_classic_builder_writes_it(engine: Engine, steps: str, line: str) -> None:
    image = engine.build(f"{BASE}{steps}\n").images[0]
    assert body(engine, f"/images/{image}/history")[0]["CreatedBy"] == line


def test_a_directory_of_the_context_keeps_its_sticky_and_group_bits(engine: Engine) -> None:
    out = io.BytesIO()
    dockerfile = f"{BASE}COPY . /c\nRUN stat -c '%n %a' /c/sticky /c/group\n".encode()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, mode in (("sticky", 0o1777), ("group", 0o2755)):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, mode
            archive.addfile(info)
        info = tarfile.TarInfo("Dockerfile")
        info.size = len(dockerfile)
        archive.addfile(info, io.BytesIO(dockerfile))
    text = engine("POST", "/build?nocache=1", out.getvalue()).text
    assert "/c/sticky 1777\n/c/group 2755\n" in text
