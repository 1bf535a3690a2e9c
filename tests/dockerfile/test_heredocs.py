"""Where a here-document begins: BuildKit's rules for ``<<``."""

from __future__ import annotations

import pytest

from ocibuildd.dockerfile.faults import Fault
from ocibuildd.dockerfile.lexer import lex, maybe_heredoc


@pytest.mark.parametrize(
    ("line", "delimiters"),
    [
        ("RUN <<EOF", ["EOF"]),
        ("RUN << EOF", ["EOF"]),
        ("RUN <<\tEOF", ["EOF"]),
        ("RUN cat <<  EOF > /x", ["EOF"]),
        ("RUN cat << 'EOF'", ["EOF"]),
        ("RUN 3<< EOF cat", ["EOF"]),
        ("RUN <<EOF cat && << EOF cat", ["EOF", "EOF"]),
        ("COPY << EOF /x", ["EOF"]),
        ("RUN cat <<- EOF", []),
        ("RUN cat <<< EOF", []),
        ("RUN cat < <EOF", []),
        ('RUN "cat << EOF"', []),
        ("RUN cat \\<< EOF", []),
        ("RUN echo $((1<<3))", []),
        ("ONBUILD RUN << EOF", ["EOF"]),
        ("CMD << EOF", []),
    ],
)
def test_white_space_may_stand_before_a_delimiter(line: str, delimiters: list[str]) -> None:
    bodies = "1\nEOF\n" * len(delimiters)
    node = lex(f"FROM a\n{line}\n{bodies}USER x\n").nodes[1]
    assert [doc.name for doc in node.heredocs] == delimiters
    assert all(doc.content == "1\n" for doc in node.heredocs)


def test_a_shift_with_spaces_is_taken_for_a_here_document() -> None:
    with pytest.raises(Fault, match="unterminated heredoc"):
        lex("FROM a\nRUN echo $((1 << 3))\n")


@pytest.mark.parametrize("word", ["<< EOF", "<<EOF", "0<<\tEOF"])
def test_a_run_that_is_a_here_document_alone_is_known_with_its_space(word: str) -> None:
    found = maybe_heredoc(word)
    assert found is not None
    assert found.name == "EOF"
