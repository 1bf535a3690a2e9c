"""BuildKit's own data: its parser, its word expansion, its checks, and what it says of real Dockerfiles."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from dockerfile_images import conformance

from ocibuildd import dockerfile as front
from ocibuildd.dockerfile.expand import Expander
from ocibuildd.dockerfile.faults import Fault
from ocibuildd.dockerfile.lexer import lex
from ocibuildd.errors import DockerfileError

ENV = {"PWD": "/home", "SHELL": "bash", "KOREAN": "한국어", "NULL": ""}


def _text(folder: Path) -> str:
    return (folder / "Dockerfile").read_bytes().decode("utf-8", "surrogateescape")


def test_the_tree_is_buildkits(parser_case: Path) -> None:
    assert lex(_text(parser_case)).dump().strip() == (parser_case / "result").read_text().strip()


def test_what_the_parser_must_refuse_is_refused(negative_case: Path) -> None:
    with pytest.raises(DockerfileError):
        front.parse((negative_case / "Dockerfile").read_bytes())


def test_lines_are_counted_as_in_buildkit() -> None:
    tree = lex(_text(conformance("parser/testfile-line")))
    assert [(node.start, node.end) for node in tree.nodes] == [(5, 5), (11, 12), (17, 31)]


def test_a_word_expands_as_in_buildkit(expand_case: tuple[str, str]) -> None:
    word, wanted = expand_case
    if wanted == "error":
        with pytest.raises(Fault):
            Expander().expand(word, ENV)
    else:
        assert Expander().expand(word, ENV).text == wanted


def test_a_text_splits_into_words_as_in_buildkit(words_case: tuple[dict[str, str], str, list[str]]) -> None:
    env, text, wanted = words_case
    if wanted == ["error"]:
        with pytest.raises(Fault):
            Expander().expand(text, env)
    else:
        assert Expander().expand(text, env).words == wanted


def test_the_checks_find_what_buildkits_find(lint_case: dict[str, Any]) -> None:
    known = _conformance_script().KNOWN
    report = front.lint(lint_case["dockerfile"].encode(), front.LowerOptions(), known)
    ours = Counter(found.rule for found in report.warnings)
    assert ours == Counter(lint_case["dfdumpRules"])


def _conformance_script() -> Any:
    path = Path(__file__).resolve().parents[2] / "conformance" / "dockerfiles.py"
    spec = importlib.util.spec_from_file_location("conformance_dockerfiles", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_real_dockerfiles_come_out_as_in_buildkit() -> None:
    script = _conformance_script()
    folder = script.default_folder()
    if not folder.exists():
        pytest.skip(f"{folder}: the open conformance data isn't here ($OCIBUILD_CONFORMANCE)")
    expected = script.rows(folder / "expected.jsonl.gz")
    bad = {
        f"{name}: {what}: {why}"
        for name, data in script.corpus(folder / "dockerfiles.tar.gz")
        for what, why in script.compare(script.answer(name, data), expected[name]).items()
    }
    assert not bad, os.linesep.join(sorted(bad)[:20])
