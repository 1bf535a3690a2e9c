"""Any bytes give a Plan or a DockerfileError, and in time."""

from __future__ import annotations

import pytest
from dockerfile_images import Images
from effort import calls, without_hanging
from hypothesis import given, settings
from hypothesis import strategies as st

from ocibuildd import dockerfile as front
from ocibuildd.dockerfile.expand import Expander
from ocibuildd.dockerfile.faults import Fault
from ocibuildd.errors import DockerfileError

OPTIONS = front.LowerOptions(build_args={"a": "1", "b": None})


def build(data: bytes) -> str:
    """Parse and lower; what became of it."""
    try:
        plan = front.lower(front.parse(data), OPTIONS, Images({}))
    except DockerfileError as error:
        str(error.to_dict()).encode()
        return error.message
    return f"{len(plan.vertices)} vertices"


def test_many_stages_are_linear() -> None:
    def cost(count: int) -> int:
        names = [b"alpine", *(b"s%d" % n for n in range(count))]
        data = b"".join(b"FROM %s AS s%d\nRUN echo %d\n" % (names[n], n, n) for n in range(count))
        ends: list[str] = []
        made = calls(lambda: ends.append(build(data)))
        assert ends == [f"{count + 1} vertices"]
        return made

    cost(10)  # what is made once
    assert cost(500) < 5.5 * cost(100)


MEGABYTE = 1 << 20
HOSTILE = {
    "instructions": b"FROM a\n" + b"RUN a\n" * (MEGABYTE // 6),
    "arguments times steps": b"FROM a\n" + b"".join(b"ARG a%d=b\n" % n for n in range(4900)) + b"RUN x\n" * 4900,
    "labels": b"FROM a\n" + b"".join(b"LABEL a%d=b\n" % n for n in range(9900)),
    "one long ENV": b"FROM a\nENV " + b"".join(b"a%d=b \\\n" % n for n in range(60000)) + b"z=1\n",
    "doubling": b"FROM a\nENV a=xxxxxxxxxxxxxxxx\n" + b"ENV a=$a$a$a$a\n" * 1000,
    "undefined names": b"FROM a\n" + b"ENV a=$bcdefg$hijk\n" * 5000,
    "undefined in FROM": b"".join(b"ARG aaaa%d\n" % n for n in range(3000)) + b"FROM x$aaab\n" * 1900,
    "continuations": b"FROM a\nRUN a" + b" \\\n" * (MEGABYTE // 3) + b"b",
    "comments": b"#\n" * (MEGABYTE // 2) + b"FROM a",
    "quotes": b"FROM a\nENV a=" + (b'"' * 50000 + b"\\\n") * 20 + b"\n",
    "ports": b"FROM a\n" + b"EXPOSE 1-65535\n" * 9000,
    "ports in a variable": b'FROM a\nENV P="' + b"80 " * 20000 + b'"\n' + b"EXPOSE $P\n" * 5000,
    "a deep directory": b"FROM a\n" + b"WORKDIR abcdefgh\n" * 9900,
    "mounts": b"FROM a\n" + b"RUN --mount=type=cache,target=/a x\n" * 3000,
    "here-documents": b"FROM a\nRUN " + b"<<a " * 10000 + b"\n" + b"a\n" * 10000,
    "a long document": b"FROM a\nCOPY <<a /b\n" + (b"$x" * 30000 + b"\n") * 17 + b"\na\n",
    "nesting": b"FROM a\nCOPY <<a /b\n" + ((b"${x:-" * 10 + b"}" * 10) * 900 + b"\n") * 8 + b"\na\n",
    "brackets": b"FROM a\nRUN " + b"[" * 60000 + b"\n",
    "triggers in triggers": b"FROM a\n" + b"ONBUILD " * 8000 + b"RUN x\n",
    "sources": b"FROM a\nCOPY " + b"a \\\n" * 200000 + b"b\n",
    "zeros": b"\0" * MEGABYTE,
    "names": (b"FROM " + b"a-" * 500 + b"b\n") * 1000,
    "a ring of stages": b"".join(b"FROM a AS s%d\nCOPY --from=s%d /a /b\n" % (n, (n + 1) % 1999) for n in range(1999)),
    "triggers times stages": b"FROM a AS b\n" + b"ONBUILD RUN x\n" * 900 + b"FROM b\n" * 900,
    "patterns": b"FROM a\nENV v=" + b"ab" * 30000 + b"\n" + b"ENV w=${v//*a*b?a/x}\n" * 5000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_megabyte_is_answered_in_time(name: str) -> None:
    with without_hanging():
        assert build(HOSTILE[name])



_WORDS = st.sampled_from(
    [
        b"FROM a", b"FROM a AS b", b"FROM b", b"FROM $a", b"FROM scratch", b"ARG a", b"ARG a=$b", b"ENV a=b", b"ENV a b",
        b"RUN x", b"RUN <<E", b"E", b"RUN [\"a\"]", b"COPY a b", b"COPY --from=b a b", b"COPY --from=0 a b", b"COPY <<E /f",
        b"ADD https://h/a.git /", b"WORKDIR a", b"USER a", b"EXPOSE 1-2", b"ONBUILD COPY --from=b / /", b"CMD a", b"LABEL a=b",
        b"RUN --mount=from=b,target=/x y", b"SHELL [\"a\"]", b"HEALTHCHECK CMD x", b"VOLUME /a", b"# check=skip=all",
        b"# escape=`", b"STOPSIGNAL 9", b"ENTRYPOINT []", b"", b"\\", b" \\", b"`",
    ]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(_WORDS, max_size=12).map(b"\n".join))
def test_any_arrangement_of_lines_builds_or_is_refused(data: bytes) -> None:
    assert build(data)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_build_or_are_refused(data: bytes) -> None:
    assert build(b"FROM a\n" + data)
    assert build(data)


@settings(max_examples=200, deadline=None)
@given(st.text("${}ab'\"\\:-+?#%/* ", max_size=20), st.sampled_from("\\`"))
def test_any_word_expands_or_is_refused(word: str, escape: str) -> None:
    try:
        found = Expander(escape).expand(word, {"a": "x y", "b": ""})
    except Fault:
        return
    assert all(found.words)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(blacklist_characters="$'\"\\\n\ufeff", blacklist_categories=("Cs",)), max_size=30))
def test_a_plain_word_expands_to_itself(word: str) -> None:
    assert Expander().word(word, {}).text == word


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.text("ab $'\"\\", max_size=6), max_size=4))
def test_a_quoted_value_comes_out_as_it_went_in(values: dict[str, str]) -> None:
    for key, value in values.items():
        quoted = "".join("\\" + char if char in "$'\"\\" else char for char in value)
        assert Expander().word(f"{quoted}${{{key}}}", values).text == value + value
