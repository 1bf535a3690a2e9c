"""Build checks: each rule, what switches them off, and what an error they make."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from dockerfile_images import Images, Lower

from ocibuildd import dockerfile as front
from ocibuildd.errors import DockerfileError
from ocibuildd.model.graph import ContextSource
from ocibuildd.model.oci import Platform

Warnings = Callable[..., list[tuple[str, int]]]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("FROM a AS Base", [("StageNameCasing", 1)]),
        ("FROM a as base", [("FromAsCasing", 1)]),
        ("from a as base", []),
        ("FROM a\nRUN x \\\n\n y", [("NoEmptyContinuation", 4)]),
        ("FROM a\nrun x", [("ConsistentInstructionCasing", 2)]),
        ("from a\nrun x\nRUN y", [("ConsistentInstructionCasing", 3)]),
        ("FROM a\nRun x", [("ConsistentInstructionCasing", 2)]),
        ("FROM a AS x\nFROM a AS x", [("DuplicateStageName", 2)]),
        ("FROM a AS scratch", [("ReservedStageName", 1)]),
        ("FROM a\nCMD x", [("JSONArgsRecommended", 2)]),
        ('FROM a\nSHELL ["sh", "-c"]\nENTRYPOINT x', []),
        ("FROM a\nMAINTAINER x", [("MaintainerDeprecated", 2)]),
        ("ARG V=1\nFROM a:${V}${X:-}", [("UndefinedArgInFrom", 2)]),
        ("FROM a\nWORKDIR x\nWORKDIR y", [("WorkdirRelativePath", 2)]),
        ("FROM a\nWORKDIR /x\nWORKDIR y", []),
        ("FROM a\nCOPY $x /", [("UndefinedVar", 2)]),
        ("FROM a\nARG x\nCOPY ${x}f /", []),
        ('FROM a\nCMD ["a"]\nCMD ["b"]', [("MultipleInstructionsDisallowed", 2)]),
        ('FROM a AS x\nCMD ["a"]\nFROM x\nCMD ["b"]', []),
        ("FROM a\nENV a b", [("LegacyKeyValueFormat", 2)]),
        ("FROM a\nLABEL a b", [("LegacyKeyValueFormat", 2)]),
        ("FROM --platform=$TARGETPLATFORM a", [("RedundantTargetPlatform", 1)]),
        ("FROM --platform=linux/amd64 a", [("FromPlatformFlagConstDisallowed", 1)]),
        ("FROM --platform=linux/amd64 a AS build-amd64", []),
        ("FROM a\nARG GITHUB_TOKEN", [("SecretsUsedInArgOrEnv", 2)]),
        ("FROM a\nENV api_key=1 PUBLIC_KEY=2 KEY_FILE=3 MONKEY=4", [("SecretsUsedInArgOrEnv", 2)]),
        ("ARG V\nFROM a:$V", [("InvalidDefaultArgInFrom", 2)]),
        ("FROM a\nEXPOSE 80/TCP", [("ExposeProtoCasing", 2)]),
        ("FROM a\nEXPOSE 127.0.0.1:80:80", [("ExposeInvalidFormat", 2)]),
        ("# about it\nFROM a AS x", []),
        ("# check=experimental=all\n# about it\nFROM a AS x", [("InvalidDefinitionDescription", 3)]),
        ("# check=experimental=InvalidDefinitionDescription\n# x is it\nFROM a AS x", []),
    ],
)
def test_a_rule_finds_what_it_is_for(warnings: Warnings, text: str, wanted: list[tuple[str, int]]) -> None:
    assert warnings(text) == wanted


def test_a_base_of_another_platform_is_told(warnings: Warnings) -> None:
    found = warnings("FROM a", platform=Platform("arm64", "linux"), implicit_platform=False)
    assert found == [("InvalidBaseImagePlatform", 1)]


@pytest.mark.parametrize(
    ("ignore", "text", "wanted"),
    [
        (("f",), "COPY f /\nADD ./f /", [("CopyIgnoredFile", 2), ("CopyIgnoredFile", 3)]),
        (("d",), "COPY d/x /", [("CopyIgnoredFile", 2)]),
        (("f", "!g"), "COPY f /", []),
        (("f",), "COPY . /", []),
        (("*",), "COPY . /", [("CopyIgnoredFile", 2)]),
        (("f",), "COPY --from=b f /", []),
        ((".*",), "COPY . /", []),
        (("**/*",), "COPY / /", [("CopyIgnoredFile", 2)]),
        (("f",), "COPY /f /", []),
        (("**/f",), "COPY /f /", [("CopyIgnoredFile", 2)]),
    ],
)
def test_sources_that_are_ignored_are_told(
    warnings: Warnings, ignore: tuple[str, ...], text: str, wanted: list[tuple[str, int]]
) -> None:
    assert warnings(f"FROM a\n{text}", context=ContextSource(ignore=ignore)) == wanted


def test_unneeded_stages_are_checked_too_unless_there_is_a_target(warnings: Warnings) -> None:
    text = "FROM a AS x\nCOPY $n /\nFROM b AS y"
    assert warnings(text) == [("UndefinedVar", 2)]
    assert warnings(text, target="y") == []


def test_checks_are_skipped_by_directive_argument_and_comment(warnings: Warnings) -> None:
    body = "FROM a as b\nCMD x"
    both = [("FromAsCasing", 1), ("JSONArgsRecommended", 2)]
    assert [rule for rule, _ in warnings(body)] == [rule for rule, _ in both]
    assert warnings(f"# check=skip=all\n{body}") == []
    assert warnings(f"# check=skip=FromAsCasing, JSONArgsRecommended\n{body}") == [("JSONArgsRecommended", 3)]
    assert warnings(f"# check=skip=FromAsCasing,JSONArgsRecommended\n{body}") == []
    assert warnings(body, build_args={"BUILDKIT_DOCKERFILE_CHECK": "skip=all"}) == []
    assert warnings("FROM a as b\n# check=skip=JSONArgsRecommended\nCMD x") == [("FromAsCasing", 1)]


def test_findings_are_an_error_where_the_file_says_so(lower: Lower) -> None:
    with pytest.raises(DockerfileError, match="lint violation found for rules: FromAsCasing"):
        lower("# check=error=true\nFROM a as b")
    assert lower("# check=error=true;skip=FromAsCasing\nFROM a as b").warnings == ()


@pytest.mark.parametrize("value", ["nope", "skip", "error=perhaps", "what=1"])
def test_a_broken_check_directive_is_refused(lower: Lower, value: str) -> None:
    with pytest.raises(DockerfileError, match="failed to parse check option"):
        lower(f"# check={value}\nFROM a")


@pytest.mark.parametrize(
    ("head", "found"),
    [
        ("# check=skip=all\n", []),
        ("#!/usr/bin/env docker\n# check=skip=all\n", []),
        ("\ufeff#check = skip=all and so on\n", []),
        ("# Check=skip=all\r\n", []),
        (" # check=skip=all\n", ["JSONArgsRecommended"]),
        ("# a comment\n# check=skip=all\n\n", ["JSONArgsRecommended"]),
        ("\n# check=skip=all\n\n", ["JSONArgsRecommended"]),
        ("// check=skip=all\n", []),
    ],
)
def test_the_check_directive_is_found_where_buildkit_finds_it(head: str, found: list[str]) -> None:
    report = front.lint(f"{head}FROM a\nCMD x\n".encode(), front.LowerOptions(), Images({}))
    assert [warning.rule for warning in report.warnings] == found


def test_broken_check_options_let_the_instructions_be_read() -> None:
    report = front.lint(b"# check=what\nFROM a as b", front.LowerOptions(), Images({}))
    assert (report.phase, report.warnings) == ("convert", ())
    assert report.error is not None
    assert 'invalid check option "what"' in report.error.message


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("FROM ${a:?}", [("InvalidDefaultArgInFrom", 1), ("UndefinedArgInFrom", 1)]),
        ("FROM a\nENV x=$b${c?}", [("UndefinedVar", 2), ("UndefinedVar", 2)]),
        ("FROM a\nARG x=${c?}", [("UndefinedVar", 2)]),
        ("FROM a\nARG c\nUSER ${c?}", []),
    ],
)
def test_names_without_a_value_are_told_where_the_build_fails_too(
    warnings: Warnings, text: str, wanted: list[tuple[str, int]]
) -> None:
    assert sorted(warnings(text)) == [item for item in wanted if item[0] != "InvalidDefaultArgInFrom"]


def test_a_plan_carries_the_warnings_with_rule_text_and_place(lower: Lower) -> None:
    (warning,) = lower("FROM a\nCOPY \\\n $PAHT /").warnings
    assert warning.rule == "UndefinedVar"
    assert warning.message == "Usage of undefined variable '$PAHT' (did you mean $PATH?)"
    assert warning.location is not None
    assert (warning.location.start, warning.location.end) == (2, 3)
    assert warning.url == "https://docs.docker.com/go/dockerfile/rule/undefined-var/"


def test_an_unknown_front_end_is_a_warning() -> None:
    known = [f"# syntax={name}\nFROM a" for name in ("docker/dockerfile:1.7-labs", "docker/dockerfile@sha256:00", "mirror/docker/dockerfile-upstream:master")]
    assert [front.parse(text.encode()).warnings for text in known] == [(), (), ()]
    (warning,) = front.parse(b"# syntax=me/mine:1\nFROM a").warnings
    assert warning.rule == "UnknownSyntax"


def test_an_argument_overrides_the_syntax(lower: Lower) -> None:
    text = "# syntax=me/mine\nFROM a"
    assert [w.rule for w in lower(text).warnings] == ["UnknownSyntax"]
    assert lower(text, build_args={"BUILDKIT_SYNTAX": "dockerfile.v0"}).warnings == ()


def test_a_text_that_does_not_parse_still_gets_its_findings() -> None:
    report = front.lint(b"FROM a AS $X\nBOGUS", front.LowerOptions(), Images({}))
    assert [found.rule for found in report.warnings] == ["StageNameCasing"]
    assert report.error is not None
    assert report.phase == "instructions"


def test_check_needs_no_images() -> None:
    dockerfile = front.parse(b"FROM a\nCMD x")
    assert [found.rule for found in front.check(dockerfile, front.LowerOptions(), {})] == ["JSONArgsRecommended"]
