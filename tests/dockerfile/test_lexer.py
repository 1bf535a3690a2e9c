"""Directives, comments, continuations, here-documents, flags and the exec form."""

from __future__ import annotations

import pytest

from ocibuildd.dockerfile.faults import Fault
from ocibuildd.dockerfile.lexer import MAX_LINE, detect_syntax, lex
from ocibuildd.dockerfile.words import json_array, read, split_flags, split_words


def nodes(text: str) -> list[tuple[str, list[str]]]:
    return [(node.value, node.args) for node in lex(text).nodes]


def test_a_byte_order_mark_on_the_first_line_is_dropped() -> None:
    assert nodes("\ufeffFROM a") == [("FROM", ["a"])]


def test_instruction_names_keep_their_case_and_mean_the_same() -> None:
    assert nodes("from a\nRuN x") == [("from", ["a"]), ("RuN", ["x"])]


def test_white_space_before_instructions_and_comments_is_ignored() -> None:
    assert nodes("  \t FROM a\n   # note\n\t RUN x") == [("FROM", ["a"]), ("RUN", ["x"])]


def test_comments_within_a_continuation_are_removed() -> None:
    assert nodes("FROM a\nRUN x \\\n# note\n  y")[1] == ("RUN", ["x   y"])


def test_a_hash_later_in_a_line_is_no_comment() -> None:
    assert nodes("FROM a\nRUN x # y")[1] == ("RUN", ["x # y"])


def test_the_escape_token_at_the_end_continues_also_before_blanks() -> None:
    assert nodes("FROM a\nRUN x \\ \t\n  y")[1] == ("RUN", ["x   y"])


def test_two_escape_tokens_at_the_end_do_not_continue() -> None:
    assert nodes("FROM a\nRUN x \\\\\nRUN y")[1:] == [("RUN", ["x \\\\"]), ("RUN", ["y"])]


def test_three_escape_tokens_do_not_continue_either_as_in_buildkit() -> None:
    assert nodes("FROM a\nRUN x \\\\\\\nRUN y")[1:] == [("RUN", ["x \\\\\\"]), ("RUN", ["y"])]


def test_blank_lines_in_a_continuation_are_skipped_and_noted() -> None:
    tree = lex("FROM a\nRUN x \\\n\n y\n")
    assert tree.nodes[1].args == ["x  y"]
    assert tree.empty_continuations == ((4, "RUN x  y"),)


def test_a_continuation_at_the_end_of_the_file_just_ends() -> None:
    assert nodes("FROM a\nRUN x \\")[1] == ("RUN", ["x"])


def test_crlf_is_trimmed_but_stays_in_here_documents() -> None:
    tree = lex("FROM a\r\nRUN x \\\r\n y\r\nCOPY <<E /f\r\nbody\r\nE\r\n")
    assert tree.nodes[1].args == ["x  y"]
    assert tree.nodes[2].heredocs[0].content == "body\r\n"


@pytest.mark.parametrize("end", ["\n", ""])
def test_a_line_that_is_too_long_is_named(end: str) -> None:
    with pytest.raises(Fault, match="greater than max allowed size of 65535") as caught:
        lex("FROM a\nRUN " + "x" * MAX_LINE + end)
    assert caught.value.location is not None
    assert caught.value.location.start == 2


def test_the_longest_allowed_line_is_allowed() -> None:
    line = "RUN " + "x" * (MAX_LINE - 5) + "\n"
    assert len(lex("FROM a\n" + line).nodes) == 2


@pytest.mark.parametrize("text", ["\n\n", "# a\n# b\n", "", "  \t"])
def test_a_file_without_instructions_is_refused(text: str) -> None:
    with pytest.raises(Fault, match="file with no instructions"):
        lex(text)


def test_line_ranges_span_continuations_and_here_documents() -> None:
    tree = lex("FROM a\n\nRUN x \\\n  y\nRUN <<E\none\nE\nRUN z")
    assert [(node.start, node.end) for node in tree.nodes] == [(1, 1), (3, 4), (5, 7), (8, 8)]


# --- directives


def test_the_escape_directive_changes_continuation_and_quoting() -> None:
    tree = lex("# escape=`\nFROM a\nRUN x `\n y\nENV a=b` c d=e\\")
    assert tree.escape == "`"
    assert [node.args for node in tree.nodes[1:]] == [["x  y"], ["a", "b` c", "=", "d", "e\\", "="]]


def test_directive_names_fold_case_and_white_space() -> None:
    assert lex("#   ESCAPE  =  `  \nFROM a").escape == "`"


def test_directives_end_at_the_first_line_that_is_none() -> None:
    assert lex("# note\n# escape=`\nFROM a").escape == "\\"
    assert lex("\n# escape=`\nFROM a").escape == "\\"
    assert lex("FROM a\n# escape=`\n").escape == "\\"


def test_a_directive_twice_is_refused() -> None:
    with pytest.raises(Fault, match="only one escape parser directive can be used"):
        lex("# escape=`\n# escape=`\nFROM a")


def test_an_unknown_escape_token_is_refused() -> None:
    with pytest.raises(Fault, match="invalid escape token 'x' does not match ` or"):
        lex("# escape=x\nFROM a")


def test_directives_are_no_comments_of_the_instruction_below() -> None:
    assert lex("# check=skip=all\n# note\nFROM a").nodes[0].comments == ("note",)


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("# syntax=docker/dockerfile:1\nFROM a", "docker/dockerfile:1"),
        ("#!/bin/x\n# syntax=a/b cmd\n", "a/b"),
        ("// syntax=a/b\n", "a/b"),
        ('{"syntax": "a/b"}', "a/b"),
        ("# escape=`\n#syntax = x\nFROM a", "x"),
    ],
)
def test_the_syntax_is_found_in_every_form(text: str, image: str) -> None:
    found = detect_syntax(text)
    assert found is not None
    assert found[0] == image


def test_a_file_without_a_syntax_has_none() -> None:
    assert detect_syntax("FROM a\n# syntax=x") is None
    assert detect_syntax("{ not json") is None


# --- here-documents


def test_a_quoted_delimiter_does_not_expand_and_is_unquoted() -> None:
    documents = [lex(f"FROM a\nRUN <<{word}\nx\nEOF\n").nodes[1].heredocs[0] for word in ("EOF", '"EOF"', "'EOF'", "E'O'F")]
    assert [doc.name for doc in documents] == ["EOF"] * 4
    assert [doc.expand for doc in documents] == [True, False, False, False]


def test_several_here_documents_on_a_line_follow_one_another() -> None:
    node = lex("FROM a\nRUN cat 5<<A 6<<-B\n1\nA\n\t2\n\tB\nRUN x").nodes[1]
    assert [(doc.name, doc.descriptor, doc.chomp, doc.content) for doc in node.heredocs] == [
        ("A", 5, False, "1\n"),
        ("B", 6, True, "\t2\n"),
    ]


def test_only_tabs_go_before_the_end_of_a_chomped_one() -> None:
    with pytest.raises(Fault, match="unterminated heredoc"):
        lex("FROM a\nRUN <<-E\nx\n  E\n")


def test_the_exec_form_holds_no_here_document() -> None:
    tree = lex('FROM a\nRUN ["cat", "<<E"]\nRUN x\n')
    assert [node.value for node in tree.nodes] == ["FROM", "RUN", "RUN"]


def test_other_instructions_hold_no_here_document() -> None:
    assert len(lex("FROM a\nENV x=<<E\nCMD <<E\n").nodes) == 3


def test_onbuild_passes_a_here_document_on() -> None:
    node = lex("FROM a\nONBUILD RUN <<E\nx\nE\n").nodes[1]
    assert node.heredocs[0].content == "x\n"


def test_the_escape_directive_leaves_delimiters_alone() -> None:
    node = lex("# escape=`\nFROM a\nRUN <<E\\OF\nx\nEOF\n").nodes[1]
    assert node.heredocs[0].name == "EOF"


# --- words


@pytest.mark.parametrize(
    ("line", "flags", "rest"),
    [
        ("--a=b --c d", ["--a=b", "--c"], "d"),
        ("--a='x y' d", ["--a=x y"], "d"),
        ("--a -- --b c", ["--a"], " --b c"),
        ("--", [], ""),
        ("a --b", [], "a --b"),
        ("-a --b", [], "-a --b"),
        ("--a=b\\ c d", ["--a=b c"], "d"),
        ("--only", ["--only"], ""),
    ],
)
def test_flags_end_at_a_bare_double_dash_or_a_word(line: str, flags: list[str], rest: str) -> None:
    assert split_flags(line) == (flags, rest)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ('["a", "b"]', ["a", "b"]),
        ("[]", []),
        ("['a']", None),
        ('["a",]', None),
        ('["a"', None),
        ('["a"] x', None),
        ("a", None),
        ('["\\u0041"]', ["A"]),
        ("[NaN]", None),
        ("[" * 5000, None),
    ],
)
def test_anything_but_a_json_array_of_strings_is_text(text: str, items: list[str] | None) -> None:
    assert json_array(text) == items


@pytest.mark.parametrize("text", ['["a", 1]', '["a", ["b"]]', "[null]", "[" * 5000 + "]" * 5000])
def test_a_json_array_of_other_things_is_an_error(text: str) -> None:
    with pytest.raises(Fault, match="arrays must be comprised of strings only"):
        json_array(text)


def test_quotes_and_escapes_keep_words_together() -> None:
    assert split_words('a="b c" d=e\\ f \'g h\'', "\\") == ['a="b c"', "d=e\\ f", "'g h'"]


def test_legacy_pairs_take_the_rest_of_the_line() -> None:
    assert read("ENV a b  c=d", "\\").args == ["a", "b  c=d", ""]


@pytest.mark.parametrize(
    ("line", "message"),
    [("ENV a", "ENV must have two arguments"), ("LABEL a=b c", "Syntax error - can't find = in \"c\"")],
)
def test_broken_pairs_are_refused(line: str, message: str) -> None:
    with pytest.raises(Fault, match=message):
        read(line, "\\")


def test_other_than_ascii_in_flags_comes_out_as_latin_1_as_in_buildkit() -> None:
    assert split_flags("--a=é ü") == (["--a=Ã©"], "ü")
