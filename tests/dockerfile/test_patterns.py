"""Go's patterns: COPY wildcards and .dockerignore files."""

from __future__ import annotations

import re

import pytest
from effort import without_hanging
from hypothesis import given, settings
from hypothesis import strategies as st

from ocibuildd.model.patterns import BadPattern, Ignore, clean, has_wildcard, match, parse_ignore


@pytest.mark.parametrize(
    ("pattern", "name", "wanted"),
    [
        ("abc", "abc", True),
        ("*", "abc", True),
        ("*c", "abc", True),
        ("a*", "ab/c", False),
        ("a*/b", "abc/b", True),
        ("a*/b", "a/c/b", False),
        ("a*b*c*d*e*/f", "axbxcxdxe/f", True),
        ("a*b?c*x", "abxbbxdbxebxczzx", True),
        ("ab[c]", "abc", True),
        ("ab[^b-d]", "abc", False),
        ("ab[^e-g]", "abc", True),
        ("a\\*b", "a*b", True),
        ("a\\*b", "ab", False),
        ("a?b", "a☺b", True),
        ("a???b", "a☺b", False),
        ("[\\]a]", "]", True),
        ("[x\\-]", "-", True),
        ("a?b", "a/b", False),
        ("*x", "xxx", True),
        ("[a-z]*", "q9", True),
    ],
)
def test_a_name_matches_as_in_go(pattern: str, name: str, wanted: bool) -> None:
    assert match(pattern, name) is wanted


@pytest.mark.parametrize("pattern", ["[]a]", "[-]", "[x-]", "[a-b-c]", "[", "[^", "[^bc", "a[", "a\\"])
def test_a_broken_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(BadPattern):
        match(pattern, "a")


def test_an_ignore_file_is_cleaned() -> None:
    text = "\ufeff/a\n# no\n b/../c/ \n\n #x\n! d\n!\n.\n"
    assert parse_ignore(text) == ("a", "c", "#x", "!d", "!", ".")


def test_a_lone_exclamation_mark_is_refused() -> None:
    with pytest.raises(BadPattern, match="illegal exclusion pattern"):
        Ignore(["!"])


@pytest.mark.parametrize(
    ("patterns", "path", "hidden"),
    [
        (["**"], "a/b", True),
        (["**/a"], "a", True),
        (["**/a"], "x/y/a/z", True),
        (["a/**"], "a", False),
        (["a/**"], "a/b/c", True),
        (["a"], "a/b/c", True),
        (["a"], "ab", False),
        (["*.go"], "x/y.go", False),
        (["**/*.go"], "x/y.go", True),
        (["a**b"], "a/x/b", True),
        (["a**b"], "axb", False),
        (["**foo"], "x/barfoo", True),
        (["foo**"], "foobar/x", True),
        (["a/**/b"], "a/b", True),
        (["a/**/b/**/c"], "a/x/b/y/z/c/d", True),
        (["a", "!a/b"], "a/b/c", False),
        (["!a/b", "a"], "a/b", True),
        (["*", "!a", "a/b"], "a/b", True),
        (["a/b/c", "!a"], "a/b/c", True),
        (["a/b/c", "!a"], "a/b/d", False),
        (["a/b/c", "!a/**"], "a/b/c", False),
        (["a", "!a/b", "a"], "a/b", False),
        (["a", "!a/b", "a/**"], "a/b", True),
        (["**/c", "!a/b"], "a/b/c", True),
        (["*.md", "!README.md"], "README.md", False),
        (["*.md", "!README.md"], "a/README.md", False),
        (["**", "!a", "a/b"], "a/c", False),
        (["[ab]"], "b/x", True),
        (["x\\*"], "x*", True),
    ],
)
def test_the_last_pattern_that_matches_wins(patterns: list[str], path: str, hidden: bool) -> None:
    assert Ignore(patterns).matches(path) is hidden


def plainly(patterns: list[str], path: str) -> bool:
    """Whether a walk from the top hides the path: each directory on the way, pattern by pattern."""
    rules = [(p.startswith("!"), expression(p.removeprefix("!"))) for p in patterns]
    parts, above, hidden = path.split("/"), [False] * len(rules), False
    for depth in range(1, len(parts) + 1):
        hidden, here = False, []
        for (negated, test), before in zip(rules, above, strict=True):
            here.append(before or (negated == hidden and re.fullmatch(test, "/".join(parts[:depth])) is not None))
            hidden = not negated if here[-1] else hidden
        above = here
    return hidden


def expression(pattern: str) -> str:
    if pattern == "**":
        return ".*"
    if pattern.startswith("**") and not set(pattern[2:]) & set("*?"):  # only its end counts
        return "(?:.*/)?" + re.escape(pattern[3:]) if pattern[2] == "/" else ".*" + re.escape(pattern[2:])
    if pattern.endswith("**") and not set(pattern[:-2]) & set("*?"):
        return re.escape(pattern[:-2]) + ".*"
    out = ""
    for part in re.findall(r"\*\*/?\Z|\*\*/?|.", pattern):
        tree = part.startswith("**")
        out += {"*": "[^/]*", "?": "[^/]"}.get(part, "(?:.*/)?" if tree else re.escape(part))
    return re.sub(r"\(\?:\.\*/\)\?\Z", ".*", out) if re.search(r"\*\*/?\Z", pattern) else out


def test_the_reason_names_the_pattern() -> None:
    ignore = Ignore(["*", "!docs", "docs/*.tmp"])
    assert ignore.why("src") == "*"
    assert ignore.why("docs/a") is None
    assert ignore.why("docs/a.tmp") == "docs/*.tmp"


def test_a_walker_enters_a_hidden_directory_only_for_exceptions_below_it() -> None:
    ignore = Ignore(["*", "!a/b/c", "!x/**/y"])
    assert [ignore.may_contain(path) for path in ("a", "a/b", "a/z", "b", "x", "x/q")] == [
        True, True, False, False, True, True,
    ]  # fmt: skip
    assert not Ignore(["a"]).may_contain("a")


_PATHS = st.lists(st.sampled_from(["a", "b", "ab", "a.b"]), min_size=1, max_size=4).map("/".join)
_PATTERNS = st.lists(
    st.text("ab*?!/.", min_size=1, max_size=8).filter(lambda text: text.strip("!/. ") != ""), max_size=5
)


@settings(max_examples=200, deadline=None)
@given(_PATTERNS, _PATHS)
def test_pruning_never_loses_a_visible_file(patterns: list[str], path: str) -> None:
    ignore = Ignore(parse_ignore("\n".join(patterns)))
    parts = path.split("/")
    if not ignore.matches(path):
        assert all(ignore.may_contain("/".join(parts[:n])) for n in range(1, len(parts)))


@settings(max_examples=300, deadline=None)
@given(_PATTERNS, _PATHS)
def test_a_file_is_hidden_as_a_walk_from_the_top_hides_it(patterns: list[str], path: str) -> None:
    read = list(parse_ignore("\n".join(patterns)))
    usable = [p for p in read if p.strip("!") and "***" not in p]
    assert Ignore(usable).matches(path) is plainly(usable, path)


@settings(max_examples=200, deadline=None)
@given(st.text("ab*?[]^-\\/", max_size=12), st.text("ab/", max_size=12))
def test_any_pattern_matches_or_is_refused(pattern: str, name: str) -> None:
    try:
        assert match(pattern, name) in (True, False)
    except BadPattern:
        pass


@pytest.mark.parametrize(
    "pattern", ["*a" * 2000, "**/" + "*a*/" * 900, "a**" * 1300 + "b", "**/*" * 1000, "?" * 4000, "**/a" * 1000]
)
def test_hostile_patterns_answer_quickly(pattern: str) -> None:
    with without_hanging():
        for path in ("a" * 4000, "a/" * 2000 + "c"):
            assert Ignore([pattern]).matches(path) in (True, False)


def test_paths_are_cleaned_as_in_go() -> None:
    wanted = {"": ".", "/": "/", "//a": "/a", "a/./b/..": "a", "/../a": "/a", "../a": "../a", "a/..": "."}
    assert {path: clean(path) for path in wanted} == wanted
    assert has_wildcard("a\\*b*")
    assert not has_wildcard("a\\*b")
