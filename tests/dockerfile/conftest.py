"""What the front end's tests share: Dockerfiles lowered over stand-in images, and the open data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dockerfile_images import Images, Lower, conformance
from hypothesis import settings

from ocibuildd import dockerfile as front
from ocibuildd.model.graph import Plan, StagePlan
from ocibuildd.model.oci import ImageConfig

settings.register_profile("no files", database=None, deadline=None)  # no .hypothesis directory is left behind
settings.load_profile("no files")


@pytest.fixture
def lower() -> Lower:
    """``lower(text, images={...}, **options)`` → Plan."""

    def run(text: str | bytes, *, images: dict[str, ImageConfig] | None = None, **options: Any) -> Plan:
        data = text.encode() if isinstance(text, str) else text
        return front.lower(front.parse(data), front.LowerOptions(**options), Images(images or {}))

    return run


@pytest.fixture
def final(lower: Lower) -> Callable[..., StagePlan]:
    """``final(text, …)`` → the target's StagePlan."""

    def run(text: str | bytes, **options: Any) -> StagePlan:
        plan = lower(text, **options)
        return plan.stages[plan.target]

    return run


@pytest.fixture
def warnings() -> Callable[..., list[tuple[str, int]]]:
    """``warnings(text, …)`` → [(rule, line), …] of the build checks."""

    def run(text: str, **options: Any) -> list[tuple[str, int]]:
        report = front.lint(text.encode(), front.LowerOptions(**options), Images({}))
        return [(found.rule, found.location.start if found.location else 0) for found in report.warnings]

    return run


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise over the open data: a fixture's name says which."""
    readers = {"parser_case": _parser_cases, "expand_case": _expand_cases, "words_case": _words_cases,
               "lint_case": _lint_cases, "negative_case": _negative_cases}  # fmt: skip
    for name, reader in readers.items():
        if name not in metafunc.fixturenames:
            continue
        try:
            cases = reader()
        except pytest.skip.Exception as skipped:
            mark = pytest.mark.skip(reason=str(skipped))
            metafunc.parametrize(name, [pytest.param(None, marks=mark, id="absent")])
        else:
            metafunc.parametrize(name, [pytest.param(case, id=ident) for ident, case in cases])


def _parser_cases() -> list[tuple[str, Path]]:
    return [(item.name, item) for item in sorted(conformance("parser/testfiles").iterdir())]


def _negative_cases() -> list[tuple[str, Path]]:
    return [(item.name, item) for item in sorted(conformance("parser/testfiles-negative").iterdir())]


def _expand_cases() -> list[tuple[str, tuple[str, str]]]:
    out = []
    text = conformance("expand/envVarTest").read_text(encoding="utf-8")
    for number, line in enumerate(text.split("\n"), 1):
        parts = line.split("|")
        if line.startswith("#") or len(parts) != 3 or "W" in parts[0]:
            continue
        out.append((f"line{number}", (parts[1].strip(), parts[2].strip())))
    return out


def _words_cases() -> list[tuple[str, tuple[dict[str, str], str, list[str]]]]:
    out: list[tuple[str, tuple[dict[str, str], str, list[str]]]] = []
    env: dict[str, str] = {}
    for number, line in enumerate(conformance("expand/wordsTest").read_text(encoding="utf-8").split("\n"), 1):
        if line.startswith("ENV "):
            key, _, value = line[4:].partition("=")
            env = {**env, key: value}
        elif line.strip() and not line.startswith("#"):
            word, _, wanted = line.partition("|")
            out.append((f"line{number}", (env, word.strip(), wanted.lstrip(" ").split(","))))
    return out


def _lint_cases() -> list[tuple[str, dict[str, Any]]]:
    import json

    cases = json.loads((conformance("lint") / "cases.json").read_text(encoding="utf-8"))
    return [(f"{n}-{case['test']}", case) for n, case in enumerate(cases) if case["agrees"]]
