"""Keys: what is in them, what isn't, and that nothing collides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocibuildd.model.graph import Copy, CopySource, InlineFile, Mkdir, Mount, Run
from ocibuildd.solver.cache import (
    SCRATCH,
    Input,
    Preimage,
    describe,
    digest,
    frame,
    image_identity,
    independent_of_root,
    layer_identity,
)
from ocibuildd.solver.reasons import MAX_EXPLAINED, compare

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
RUN = Run(args=("/bin/sh", "-c", "make"), env=(("PATH", "/bin"), ("A", "1")))


def key(op: Any, root: str = "r", variant: dict[str, Any] | None = None, **files: str) -> str:
    return preimage(op, root, variant, **files).key


def preimage(
    op: Any, root: str = "r", variant: dict[str, Any] | None = None, name: str = "before", **files: str
) -> Preimage:
    inputs = (Input("root", root, name=name),)
    if files:
        inputs += (Input("source 0", digest([files]), selected=True, files=files, name="context"),)
    return Preimage(describe(op), inputs, variant or {})


@given(st.lists(JSON, max_size=3), st.lists(JSON, max_size=3))
@settings(max_examples=200, deadline=None, database=None)
def test_different_values_never_give_the_same_bytes(a: list[Any], b: list[Any]) -> None:
    def same(x: Any, y: Any) -> bool:
        if type(x) is not type(y):
            return False
        if isinstance(x, list):
            return len(x) == len(y) and all(map(same, x, y))
        if isinstance(x, dict):
            return x.keys() == y.keys() and all(same(x[k], y[k]) for k in x)
        return bool(x == y)

    assert (frame(*a) == frame(*b)) == same(a, b)


@pytest.mark.parametrize(("a", "b"), [
    (["ab", "c"], ["a", "bc"]),
    (["a,b"], ["a", "b"]),
    ([["a"], "b"], [["a", "b"]]),
    ([{"a": "b:c"}], [{"a:b": "c"}]),
    ([1], ["1"]),
    ([True], [1]),
    ([None], [""]),
])
def test_nothing_collides_by_concatenation(a: list[Any], b: list[Any]) -> None:
    assert frame(*a) != frame(*b)


@pytest.mark.parametrize("other", [
    replace(RUN, args=("/bin/sh", "-c", "make all")),
    replace(RUN, args=("/bin/sh", "-c mak", "e")),
    replace(RUN, env=(("PATH", "/bin"), ("A", "2"))),
    replace(RUN, env=(("PATH", "/binA"), ("", "1"))),
    replace(RUN, cwd="/src"),
    replace(RUN, user="app"),
    replace(RUN, network="none"),
    replace(RUN, security="insecure"),
    replace(RUN, hostname="other"),
    replace(RUN, files=(InlineFile("EOF", b"x"),)),
    replace(RUN, mounts=(Mount("tmpfs", "/t"),)),
    replace(RUN, mounts=(Mount("secret", "/s", id="a"),)),
])
def test_what_a_step_depends_on_is_in_its_key(other: Run) -> None:
    assert key(other) != key(RUN)


@pytest.mark.parametrize("other", [
    replace(RUN, proxy_env=(("http_proxy", "http://u:p@proxy"),)),
    replace(RUN, shell="make"),
])
def test_what_a_step_doesnt_depend_on_is_not(other: Run) -> None:
    assert key(other) == key(RUN)


def test_the_place_of_a_cache_mount_counts_and_its_id_does_not() -> None:
    one = replace(RUN, mounts=(Mount("cache", "/c", cache_id="a", readonly=False),))
    assert key(one) == key(replace(RUN, mounts=(Mount("cache", "/c", cache_id="b", readonly=False),)))
    assert key(one) != key(replace(RUN, mounts=(Mount("cache", "/d", cache_id="a", readonly=False),)))


def test_parents_and_output_options_count() -> None:
    assert key(RUN, "r") != key(RUN, "s")
    assert key(RUN, "r") != key(RUN, "r", {"clamp": 0})


COPY = Copy((CopySource(1, ("a",)),), "/b")
SECRET = replace(RUN, mounts=(Mount("secret", "/s", id="a"),))


@pytest.mark.parametrize("other", [
    replace(COPY, dest="/c"), replace(COPY, chown="1"), replace(COPY, chmod="700"),
    replace(COPY, exclude=("x",)), replace(COPY, parents=True), replace(COPY, link=True),
    replace(COPY, is_add=True, unpack=None), Mkdir("/b"),
])
def test_what_a_copy_depends_on_is_in_its_key(other: Any) -> None:
    assert key(other) != key(COPY)


def test_only_linked_copies_with_numeric_owners_stand_alone() -> None:
    assert independent_of_root(replace(COPY, link=True, chown="1:2"))
    assert not independent_of_root(replace(COPY, link=True, chown="app"))
    assert not independent_of_root(COPY)


def test_an_empty_layer_changes_no_identity() -> None:
    assert layer_identity("p", "") == "p"
    assert layer_identity("p", "c") != layer_identity("q", "c")
    assert image_identity([]) == SCRATCH


def test_a_preimage_comes_back_from_json() -> None:
    made = preimage(RUN, f="1")
    back = Preimage.from_json(made.to_json())
    assert (back.key, back.op_digest, back.selector) == (made.key, made.op_digest, made.selector)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"op":1}', '{"op":{},"inputs":[{}]}'])
def test_a_damaged_preimage_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Preimage.from_json(text)


@pytest.mark.parametrize(("old", "new", "kind", "words"), [
    (preimage(RUN), preimage(replace(RUN, env=(("PATH", "/bin"), ("A", "2")))), "argument", "A changed: 1 → 2"),
    (preimage(RUN), preimage(replace(RUN, env=(("PATH", "/bin"),))), "argument", "A was removed"),
    (preimage(RUN), preimage(replace(RUN, args=("/bin/sh", "-c", "x"))), "instruction", "make → x"),
    (preimage(RUN, "a"), preimage(RUN, "b"), "parent", "before"),
    (preimage(COPY, x="1"), preimage(COPY, x="2"), "file", "x changed its content"),
    (preimage(COPY, x="1"), preimage(COPY, x="1", y="2"), "file", "y was added"),
    (preimage(COPY, x="1", y="2"), preimage(COPY, x="1"), "file", "y was removed"),
    (preimage(RUN), preimage(replace(RUN, user="app")), "option", "the user changed: the default → app"),
    (preimage(RUN), preimage(replace(RUN, cwd="/w")), "option", "the working directory changed"),
    (preimage(RUN), preimage(replace(RUN, args=("/bin/sh", "-ec", "make"))), "instruction", "/bin/sh -ec make"),
    (preimage(COPY), preimage(replace(COPY, chown="1:2")), "option", "--chown changed: the default → 1:2"),
    (preimage(SECRET), preimage(replace(SECRET, mounts=(Mount("secret", "/s", id="b"),))), "secret",
     "the secret mount /s changed: id a → b"),
    (preimage(RUN), preimage(SECRET), "mount", "the secret mount /s was added"),
    (preimage(SECRET), preimage(RUN), "mount", "the secret mount /s was removed"),
    (preimage(RUN), preimage(RUN, variant={"clamp": 0}), "option", "timestamps are clamped to 0 now"),
    (preimage(RUN, variant={"clamp": 0}), preimage(RUN), "option", "clamped no longer"),
    (preimage(RUN, "a", name="[1/2] FROM a@1"), preimage(RUN, "b", name="[1/2] FROM a@2"), "base",
     "the base image changed: a@1 → a@2"),
    (preimage(RUN, "a", name="[2/3] RUN a"), preimage(RUN, "b", name="[2/3] RUN b"), "parent",
     "another step is before it now: [2/3] RUN b (it was RUN a)"),
    (preimage(COPY, x="755:1"), preimage(COPY, x="755 1:1:1"), "file", "x changed its mode or owner (755 → 755 1:1)"),
    (preimage(COPY, x="777:->a"), preimage(COPY, x="777:->b:c"), "file", "x links to b:c now (it was a)"),
    (preimage(COPY, x="644:1"), preimage(COPY, x="777:->b"), "file", "x is a symbolic link now"),
    (preimage(COPY, x="777:->b"), preimage(COPY, x="644:1"), "file", "x is no symbolic link any more"),
    (preimage(COPY, x="644:1"), preimage(COPY, x="644:2+"), "file", "x changed its content or extended attributes"),
])
def test_a_difference_is_told_in_words(old: Preimage, new: Preimage, kind: str, words: str) -> None:
    (reason,) = compare(old, new)
    assert reason.kind == kind
    assert words in reason.text


def test_files_that_are_not_known_are_not_said_to_be_new() -> None:
    unknown = preimage(COPY, x="1")
    inputs = (unknown.inputs[0], replace(unknown.inputs[1], identity="other", files={}))
    (reason,) = compare(replace(unknown, inputs=inputs), unknown)
    assert reason.text == "the files of context changed"


def test_what_a_list_was_cut_off_before_is_not_said_to_have_gone() -> None:
    names = [f"f{number:04}" for number in range(MAX_EXPLAINED)]
    old = preimage(COPY, **dict.fromkeys(names, "1"))
    new = preimage(COPY, **dict.fromkeys(["a", *names[:-1]], "1"))
    (reason,) = compare(old, new)
    assert reason.text == "a was added"
