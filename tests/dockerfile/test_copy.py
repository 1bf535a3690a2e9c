"""COPY and ADD: destinations, sources, flags, here-documents, URLs and git."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from dockerfile_images import Lower, base_image

from ocibuildd import dockerfile as front
from ocibuildd.errors import DockerfileError
from ocibuildd.model.graph import (
    ContextSource,
    Copy,
    CopySource,
    GitSource,
    HttpSource,
    InlineFile,
    Mkdir,
    StagePlan,
    Vertex,
)

Final = Callable[..., StagePlan]
OneCopy = Callable[..., Copy]


@pytest.fixture
def copy(lower: Lower) -> OneCopy:
    """The operation of the last COPY or ADD."""

    def one(lines: str, **options: object) -> Copy:
        op = lower(f"FROM a\n{lines}", **options).vertices[-1].op
        assert isinstance(op, Copy)
        return op

    return one


@pytest.mark.parametrize(
    ("dest", "wanted"),
    [
        ("/x", "/x"),
        ("/x/", "/x/"),
        ("x", "/w/x"),
        (".", "/w/"),
        ("./", "/w/"),
        ("..", "/"),
        ("../../../x", "/x"),
        ("/", "/"),
        ("/a/../b/.", "/b/"),
        ("$EMPTY", "/w/"),
    ],
)
def test_a_destination_is_absolute_and_says_whether_it_is_a_directory(copy: OneCopy, dest: str, wanted: str) -> None:
    assert copy(f"ARG EMPTY=\nWORKDIR /w\nCOPY f {dest}").dest == wanted


def test_sources_stay_as_written_for_the_one_who_copies(copy: OneCopy) -> None:
    op = copy("ENV d=dir\nCOPY a*.txt /abs ../up $d/ ./x dest/")
    assert op.sources == (CopySource(1, ("a*.txt", "/abs", "../up", "dir/", "./x")),)


def test_the_json_form_takes_spaces(copy: OneCopy) -> None:
    assert copy('COPY ["a b", "c d/"]').sources[0].paths == ("a b",)


def test_every_flag_of_copy_arrives(copy: OneCopy) -> None:
    op = copy("ENV u=7\nCOPY --chown=$u:8 --chmod=u=rwX,go=rX --parents --exclude=*.o --exclude=x/** ./a /b")
    assert (op.chown, op.chmod, op.parents, op.exclude) == ("7:8", "u=rwX,go=rX", True, ("*.o", "x/**"))
    assert (op.unpack, op.is_add, op.link) == (False, False, False)


def test_a_link_with_a_mode_is_silently_none(copy: OneCopy) -> None:
    assert copy("COPY --link a /").link
    assert not copy("COPY --link --chmod=644 a /").link
    assert not copy("COPY --link=false a /").link


@pytest.mark.parametrize("mode", ["0", "7777", "755", "u=rwX,go=rX", "+x", "a-w", "u+s,g=u", "=", "o="])
def test_modes_are_octal_or_symbolic(copy: OneCopy, mode: str) -> None:
    assert copy(f"COPY --chmod={mode} a /").chmod == mode


@pytest.mark.parametrize("mode", ["8", "10000", "999999999999", "u=q", "x", "u", "0x1", "-1", "u=rwX,,"])
def test_a_broken_mode_is_refused(copy: OneCopy, mode: str) -> None:
    with pytest.raises(DockerfileError, match="invalid chmod parameter"):
        copy(f"COPY --chmod={mode} a /")


def test_a_mode_may_be_a_variable(copy: OneCopy) -> None:
    assert copy("ARG m=0600\nCOPY --chmod=${m} a /").chmod == "0600"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("COPY a", "COPY requires at least two arguments"),
        ("COPY --checksum=x a /", "unknown flag: --checksum"),
        ("COPY --form=x a /", r"unknown flag: --form \(did you mean from\?\)"),
        ("COPY --from=$x a /", "variable expansion is not supported for --from"),
        ("COPY https://h/f /", "source can't be a URL for COPY"),
        ("COPY git@github.com:a/b.git /", "source can't be a git ref for COPY"),
        ("COPY a <<E", "cannot accept a heredoc as a destination"),
        ("COPY --link=yes a /", "expecting boolean value for flag --link, not: yes"),
        ("COPY --link= a /", "missing a value on flag: --link"),
        ("ADD --from=x a /", "unknown flag: --from"),
        ("ADD --parents a /", "unknown flag: --parents"),
        ("ADD --checksum=sha256:00 https://h/f /", "invalid checksum digest length"),
        ("ADD --checksum=md5:00 https://h/f /", "unsupported digest algorithm"),
        ("ADD --checksum=sha256:00 f /", r"checksum requires HTTP\(S\) or Git sources"),
        ("ADD --checksum=x https://h/a https://h/b /", "checksum can't be specified for multiple sources"),
        ("ADD https://h/r.git?bad=1 /", 'unexpected query "bad"'),
        ("ADD https://h/r.git?tag=1&branch=2 /", "branch conflicts with tag"),
        ("ADD https://h/r.git#--upload-pack=x /", "begins with a dash"),
    ],
)
def test_what_is_wrong_is_said(copy: OneCopy, line: str, message: str) -> None:
    text = line + "\nE\n" if "<<E" in line else line
    with pytest.raises(DockerfileError, match=message):
        copy(text)


# --- here-documents


def test_inline_files_expand_unless_their_delimiter_is_quoted(copy: OneCopy) -> None:
    op = copy("ENV v=1\nCOPY <<a <<'b' f /d/\n$v \"$v\" \\$v\na\n$v\nb\n")
    assert op.sources == (
        CopySource(1, ("f",)),
        CopySource(None, inline=(InlineFile("a", b'1 "1" $v\n'), InlineFile("b", b"$v\n"))),
    )


def test_leading_tabs_go_from_a_chomped_file(copy: OneCopy) -> None:
    assert copy("COPY <<-E /f\n\tx\n\t\ty\n\tE\n").sources[0].inline[0].data == b"x\ny\n"


def test_an_inline_file_keeps_its_line_ends(copy: OneCopy) -> None:
    assert copy("COPY <<E /f\r\nx\r\nE\r\n").sources[0].inline[0].data == b"x\r\n"


def test_an_inline_file_is_no_path(copy: OneCopy) -> None:
    with pytest.raises(DockerfileError, match="can't be a path"):
        copy("COPY <<../../x /f\ny\n../../x\n")
    assert copy("COPY <</x /d/\ny\n/x\n").sources[0].inline[0].name == "x"


# --- ADD


def vertices(lower: Lower, line: str) -> tuple[Vertex, Copy, tuple[Vertex, ...]]:
    plan = lower(f"FROM a\n{line}")
    vertex = plan.vertices[-1]
    assert isinstance(vertex.op, Copy)
    return vertex, vertex.op, plan.vertices


def test_add_unpacks_local_archives_unless_told(copy: OneCopy) -> None:
    assert copy("ADD a.tar /").unpack is None
    assert copy("ADD --unpack=false a.tar /").unpack is False
    assert copy("ADD --unpack https://h/a.tar /").unpack is True


@pytest.mark.parametrize(
    ("url", "name"),
    [("https://h/a/b.tgz?x=1", "b.tgz"), ("http://h/", "__unnamed__"), ("https://h", "__unnamed__"), ("https://h/a%20b", "a b")],
)
def test_a_download_is_called_as_its_url_says(lower: Lower, url: str, name: str) -> None:
    vertex, op, every = vertices(lower, f"ADD {url} /d/")
    assert every[vertex.inputs[1]].op == HttpSource(url, name)
    assert op.sources == (CopySource(1, (name,)),)


def test_a_checksum_belongs_to_the_download(lower: Lower) -> None:
    digest = "sha256:" + "0" * 64
    vertex, _, every = vertices(lower, f"ADD --checksum={digest} https://h/f /")
    assert every[vertex.inputs[1]].op == HttpSource("https://h/f", "f", digest)


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("https://h/r.git", GitSource("https://h/r.git")),
        ("https://h/r.git#v1", GitSource("https://h/r.git", "v1")),
        ("https://h/r.git#v1:sub/dir", GitSource("https://h/r.git", "v1", "sub/dir")),
        ("https://h/r.git#:sub", GitSource("https://h/r.git", "", "sub")),
        ("git@h:r.git#v1", GitSource("git@h:r.git", "v1")),
        ("ssh://git@h:22/r", GitSource("ssh://git@h:22/r")),
        ("git://h/r", GitSource("git://h/r")),
        ("https://h/r.git?tag=v1&subdir=s", GitSource("https://h/r.git", "refs/tags/v1", "s")),
        ("https://h/r.git?branch=b&submodules=false", GitSource("https://h/r.git", "refs/heads/b", submodules=False)),
        ("https://h/r.git?checksum=abc", GitSource("https://h/r.git", "abc", checksum="abc")),
        ("https://h/r.git?keep-git-dir=true&mtime=commit", GitSource("https://h/r.git", keep_git_dir=True, mtime="commit")),
    ],
)
def test_git_sources_in_every_form(lower: Lower, source: str, wanted: GitSource) -> None:
    vertex, op, every = vertices(lower, f"ADD {source} /d")
    assert every[vertex.inputs[1]].op == wanted
    assert op.sources == (CopySource(1, ("/",)),)


def test_keep_git_dir_and_checksum_may_be_flags(lower: Lower) -> None:
    vertex, _, every = vertices(lower, "ADD --keep-git-dir --checksum=abc https://h/r.git#v1 /d")
    assert every[vertex.inputs[1]].op == GitSource("https://h/r.git", "v1", checksum="abc", keep_git_dir=True)


@pytest.mark.parametrize("path", ["github.com/a/b", "./a.git", "user@host", "file:///x", "a:b"])
def test_what_only_looks_like_git_is_a_path(lower: Lower, path: str) -> None:
    vertex, op, every = vertices(lower, f"ADD {path} /d")
    assert every[vertex.inputs[1]].op == ContextSource()
    assert op.sources[0].paths == (path,)


def test_github_names_are_git_for_contexts() -> None:
    ref = front.parse_git_ref("github.com/a/b#v1")
    assert ref is not None
    assert front.git_source(ref) == GitSource("https://github.com/a/b", "v1")


# --- history and WORKDIR


def test_history_shows_what_buildkit_shows(final: Final) -> None:
    text = "FROM a\nENV d=/d\nCOPY --from=x --link --chown=1:2 --chmod=755 --exclude=z a b $d\nADD <<E f /\nE\nCOPY --parents a /"
    assert [item.created_by for item in final(text).history][1:] == [
        "COPY --chown=1:2 --chmod=755 a b /d # buildkit", "ADD f <<E / # buildkit", "COPY --parents a / # buildkit",
    ]  # fmt: skip


def test_workdir_makes_a_layer_owned_by_the_user(lower: Lower) -> None:
    plan = lower("FROM a\nUSER u\nWORKDIR /x/../y\nWORKDIR z\nWORKDIR /")
    assert [vertex.op for vertex in plan.vertices[1:]] == [Mkdir("/y", "u"), Mkdir("/x/../y/z".replace("/x/..", ""), "u")]
    history = [(item.created_by, item.vertex is None) for item in plan.stages[0].history]
    assert history == [("USER u", True), ("WORKDIR /x/../y", False), ("WORKDIR /y/z", False), ("WORKDIR /", True)]


def test_the_directory_of_the_base_is_where_it_starts(copy: OneCopy) -> None:
    assert copy("COPY f .", images={"a": base_image(working_dir="/srv")}).dest == "/srv/"
