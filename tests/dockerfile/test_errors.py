"""Errors that teach: where, the lines themselves, a caret, what was meant."""

from __future__ import annotations

import pytest
from dockerfile_images import Images, Lower

from ocibuildd import dockerfile as front
from ocibuildd.errors import DockerfileError


def error_of(text: str, lower: Lower | None = None) -> DockerfileError:
    with pytest.raises(DockerfileError) as caught:
        lower(text) if lower else front.parse(text.encode(), "sub/Dockerfile")
    return caught.value


def test_an_error_has_file_line_source_and_caret() -> None:
    error = error_of("FROM a\nRUN x\n  COPPY a b\n")
    assert error.message == "dockerfile parse error on line 3: unknown instruction: COPPY (did you mean COPY?)"
    assert error.details == {
        "file": "sub/Dockerfile", "line": 3, "end_line": 3, "source": [[3, "  COPPY a b"]], "column": 3, "caret_line": 3,
    }  # fmt: skip


def test_an_error_in_a_continued_line_shows_all_lines() -> None:
    error = error_of("FROM a\nCOPY --chown=1 \\\n  --chwon=2 \\\n a b")
    assert error.details["source"] == [[2, "COPY --chown=1 \\"], [3, "  --chwon=2 \\"], [4, " a b"]]
    assert (error.details["caret_line"], error.details["column"]) == (3, 3)


def test_an_error_while_lowering_has_its_place_too(lower: Lower) -> None:
    error = error_of("FROM a\nENV a=1\nCOPY --from=${x} a /", lower)
    assert (error.details["line"], error.details["column"]) == (3, 6)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("FROM a\nruun x", "run"),
        ("FORM a", "FROM"),
        ("FROM a\nCOPY --chmon=1 a b", "chmod"),
        ("FROM a\nRUN --netwrk=none x", "network"),
    ],
)
def test_what_was_meant_is_suggested(text: str, near: str) -> None:
    assert f"(did you mean {near}?)" in error_of(text).message


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert "did you mean" not in error_of("FROM a\nBOGUS x").message


def test_an_instruction_before_from_is_told_so() -> None:
    error = error_of("RUN x\nFROM a")
    assert error.message == "no build stage in current context"
    assert "FROM" in error.hint


@pytest.mark.parametrize("data", [b"", b"\n", b"# x\n"])
def test_an_empty_file_is_told_so(data: bytes) -> None:
    with pytest.raises(DockerfileError, match=r"cannot be empty|no instructions"):
        front.parse(data)


def test_only_arguments_make_no_build(lower: Lower) -> None:
    assert "no stages to build" in error_of("ARG a=1", lower).message


def test_messages_and_sources_are_plain_text() -> None:
    with pytest.raises(DockerfileError) as caught:
        front.parse(b"FROM a\nB\xff x")
    caught.value.message.encode()
    str(caught.value.details).encode()


def test_shown_sources_are_bounded() -> None:
    error = error_of("FROM a\nBOGUS " + "x" * 5000 + " \\\n" + "y \\\n" * 100 + "z")
    source = error.details["source"]
    assert isinstance(source, list)
    assert len(source) == 20
    assert len(source[0][1]) == 500


def test_an_image_that_nobody_resolved_is_an_error_not_a_crash() -> None:
    dockerfile = front.parse(b"FROM nope")
    assert [ref for ref, _ in front.required_images(dockerfile, front.LowerOptions(), {})] == ["docker.io/library/nope:latest"]
    with pytest.raises(DockerfileError, match="was not resolved"):
        front.lower(dockerfile, front.LowerOptions(), {})


BROKEN = {
    "# check=what\nFROM a": 1,
    "#!/bin/sh\n# check=error=x\nFROM a": 2,
    "ARG a\nARG b \\\n c": 2,
    "ARG SOURCE_DATE_EPOCH=x\nFROM a": 1,
    "FROM a AS x\nRUN y\nARG SOURCE_DATE_EPOCH=1\nFROM ${x": 4,
    "FROM a\nCOPY --from=7 a b": 2,
    "FROM a\nRUN --mount=from=$x y": 2,
    "FROM a\nADD git@h:x/y.git?what=1 /": 2,
    "FROM a\nCOPY --from=b/B a b": 2,
    "FROM a\n\nRUN <<E\n": 3,
    "FROM a\nONBUILD FROM b": 2,
    "FROM a AS x\nONBUILD COPY $y\nFROM x": 3,
    "FROM a AS x\nCOPY --from=y a b\nFROM a AS y\nCOPY --from=x a b": 4,
}


@pytest.mark.parametrize("text", BROKEN)
def test_every_error_of_a_file_has_its_line(text: str) -> None:
    report = front.lint(text.encode(), front.LowerOptions(), Images({}))
    assert report.error is not None
    assert report.error.details.get("line") == BROKEN[text], report.error.message


# --- outline and targets


def test_targets_are_all_stages() -> None:
    found = front.targets(front.parse(b"# build makes it\nFROM --platform=$B a AS build\nFROM scratch"))
    assert found["targets"] == [
        {"name": "build", "description": "makes it", "base": "a", "platform": "$B", "location": {"ranges": [{"start": {"line": 2}, "end": {"line": 2}}]}},
        {"default": True, "base": "scratch", "location": {"ranges": [{"start": {"line": 3}, "end": {"line": 3}}]}},
    ]  # fmt: skip


def test_an_outline_has_arguments_secrets_and_agents_of_what_is_needed() -> None:
    text = (
        b"# V is the version\nARG V=1\nARG UNUSED=2\nFROM a:$V AS x\nARG own=3\n"
        b"RUN --mount=type=secret,id=k,required --mount=type=ssh y\nFROM b\nARG never\nFROM x\nARG V"
    )
    found = front.outline(front.parse(text), front.LowerOptions(build_args={"own": "4"}), {})
    assert [(arg["name"], arg.get("value"), arg.get("description")) for arg in found["args"]] == [
        ("V", "1", "is the version"), ("own", "4", None),
    ]  # fmt: skip
    assert [(item["name"], item["required"]) for item in found["secrets"]] == [("k", True)]
    assert found["ssh"] == [{"name": "default", "location": {"ranges": [{"start": {"line": 6}, "end": {"line": 6}}]}}]


def test_an_outline_is_that_of_a_named_and_described_target() -> None:
    text = front.parse(b"# x is it\nFROM a AS x\nARG v=1\nARG v=2\nFROM x")
    found = front.outline(text, front.LowerOptions(target="x"), {})
    assert (found["name"], found["description"]) == ("x", "is it")
    assert [(arg["value"], arg["location"]["ranges"][0]["start"]["line"]) for arg in found["args"]] == [("2", 4)]
    assert "name" not in front.outline(text, front.LowerOptions(), {})


def test_findings_have_buildkits_shape() -> None:
    text = front.parse(b"FROM a as b", "some/Dockerfile")
    found = front.findings(text.source, front.check(text, front.LowerOptions(), {}))
    assert found["sources"] == [{"filename": "some/Dockerfile", "data": "RlJPTSBhIGFzIGI=", "language": "Dockerfile"}]
    assert found["warnings"] == [
        {
            "ruleName": "FromAsCasing", "detail": "'as' and 'FROM' keywords' casing do not match",
            "description": "The 'as' keyword should match the case of the 'from' keyword",
            "url": "https://docs.docker.com/go/dockerfile/rule/from-as-casing/",
            "location": {"ranges": [{"start": {"line": 1}, "end": {"line": 1}}]},
        }
    ]  # fmt: skip
