"""Expansion: modifiers, patterns, quoting, and what it must not cost."""

from __future__ import annotations

import contextlib

import pytest
from effort import without_hanging

from ocibuildd.dockerfile.expand import Expander, Work
from ocibuildd.dockerfile.faults import Fault
from ocibuildd.dockerfile.globs import Glob

ENV = {"set": "value", "empty": "", "path": "/a/b.tar.gz", "x": "xyx", "words": "a  b"}


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("$set-${set}", "value-value"),
        ("${unset:-w}${empty:-w}${empty-w}${set:-w}", "wwvalue"),
        ("${unset:+w}${empty:+w}${empty+w}${set+w}", "ww"),
        ("${set:?no}${empty?no}", "value"),
        ("${unset:-${unset:-${set}}}", "value"),
        ("${path#*/}", "a/b.tar.gz"),
        ("${path##*/}", "b.tar.gz"),
        ("${path%.*}", "/a/b.tar"),
        ("${path%%.*}", "/a/b"),
        ("${path#?a}", "/b.tar.gz"),
        ("${path#nothing}", "/a/b.tar.gz"),
        ("${path/a/A}", "/A/b.tar.gz"),
        ("${path//a/A}", "/A/b.tAr.gz"),
        ("${path//\\//_}", "_a_b.tar.gz"),
        ("${x//?/-}", "---"),
        ("${x/x*/}", ""),
        ("\\$set '$set' \"$set\"", "$set $set value"),
        ("$set\\", "value"),
        ("$$set $! $0 $.", "set   $."),
        ("a\\b\"a\\b\"", "aba\\b"),
        ("$set² $²", "value² $²"),
    ],
)
def test_a_word_expands(word: str, wanted: str) -> None:
    assert Expander().word(word, ENV).text == wanted


def test_all_matches_are_replaced_by_a_template_as_in_go() -> None:
    assert Glob("x").replace("xyx", "$0$00${1}-$$", everywhere=True) == "x-$yx-$"
    assert Glob("x").replace("xyx", "$0", everywhere=False) == "$0yx"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("${unset:?say why}", "unset: say why"),
        ("${unset?}", "unset: is not allowed to be unset"),
        ("${empty:?}", "empty: is not allowed to be empty"),
        ("${", "missing '}'"),
        ("${}", "bad substitution"),
        ("${set", "unsupported modifier"),
        ("${set:-", "missing '}'"),
        ("${set!x}", "unsupported modifier \\(!\\)"),
        ("${set/a}", "missing '/'"),
        ("${set#\\x}", "invalid escape"),
        ("${set:#v}", "unsupported modifier \\(:#\\)"),
        ("${set:%e}", "unsupported modifier \\(:%\\)"),
        ("${set:/a/b}", "unsupported modifier \\(:/\\)"),
        ("${unset:-${set:##v}}", "unsupported modifier \\(:#\\)"),
        ("'a", "matching single-quote"),
        ('"a', "matching double-quote"),
    ],
)
def test_a_broken_word_says_what_is_wrong(word: str, message: str) -> None:
    with pytest.raises(Fault, match=message):
        Expander().word(word, ENV)


def test_the_other_escape_token_quotes_instead() -> None:
    assert Expander("`").word("`$set \\$set", ENV).text == "$set \\value"


def test_used_names_are_told_apart() -> None:
    found = Expander().word("$set ${nope:-$neither} $set", ENV)
    assert list(found.matched) == ["set"]
    assert sorted(found.unmatched) == ["neither", "nope"]


def test_what_had_no_value_is_known_of_a_failed_word_too() -> None:
    with pytest.raises(Fault) as caught:
        Expander().word("$one ${two:-$set} ${three?}", ENV)
    assert sorted(caught.value.unmatched) == ["one", "three", "two"]


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("a$set", ["avalue"]),
        ("a${set}b", ["avalueb"]),
        ("a${unset:-b}c d", ["bc", "d"]),
        ("a b${set+c}", ["a", "c"]),
        ('a"b${unset-c}d" e', ["bcd", "e"]),
    ],
)
def test_a_word_with_an_alternative_loses_what_stands_before_it_as_in_buildkit(word: str, wanted: list[str]) -> None:
    assert Expander().expand(word, ENV).words == wanted


def test_only_unquoted_results_split() -> None:
    assert Expander().expand('$words "$words" \'$words\'', ENV).words == ["a", "b", "a  b", "$words"]


def test_here_documents_keep_their_quotes() -> None:
    body = "\"$set\" '$set' \\$set"
    assert Expander("\\", skip_quotes=True).word(body, ENV).text == "\"value\" 'value' $set"


def test_undecodable_bytes_become_replacement_characters_when_expanded() -> None:
    assert Expander().word("$set\udcff", ENV).text == "value\ufffd"


@pytest.mark.parametrize(
    "word",
    [
        "$" * 300_000,
        "${" * 150_000,
        '"' * 300_000,
        "${a:-" * 60_000,
        "\\" * 300_000,
        "${v//*a*a*a*b/c}" * 20_000,
        "${v##*a*a*a*a*a*a*a*a*b}",
    ],
)
def test_hostile_words_answer_quickly(word: str) -> None:
    with without_hanging(), contextlib.suppress(Fault):
        assert Expander(work=Work()).word(word, {"v": "a" * 5000}).text is not None


def test_what_a_word_expands_to_is_bounded() -> None:
    with pytest.raises(Fault, match="more than"):
        Expander().word("$v" * 100, {"v": "x" * 100_000})
