"""COPY and ADD: local paths, here-documents, URLs and git."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import cast
from urllib.parse import unquote, urlsplit

from ..model.graph import Copy as CopyOp
from ..model.graph import CopySource, HttpSource, InlineFile
from ..model.patterns import clean
from .context import Context
from .faults import Fault
from .gitref import GitRef, git_source, parse_git_ref
from .gotext import quote
from .instructions import Add, Copy, Inline, Transfer
from .lint import COPY_IGNORED, Linter
from .modes import check_chmod
from .state import Command, State

UNNAMED = "__unnamed__"
"""What a download is called whose URL has no file name."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z|sha384:[0-9a-f]{96}\Z|sha512:[0-9a-f]{128}\Z")


def is_http(text: str, *, known_git: bool = False) -> bool:
    """An HTTP(S) URL that isn't a git repository's."""
    return text.startswith(("http://", "https://")) and parse_git_ref(text, known_git=known_git) is None


def destination(state: State, dest: str) -> str:
    """Absolute and clean; a "/" at the end says that it is a directory."""
    path = clean(dest if dest.startswith("/") else f"/{state.cwd}/{dest}")
    directory = dest in ("", ".", "..") or dest.endswith(("/", "/.", "/.."))
    return path + "/" if directory and path != "/" else path


def lower_transfer(context: Context, state: State, command: Command, lint: Linter) -> None:
    """A COPY or an ADD.  Raises Fault."""
    item = _expanded(context, state, cast(Transfer, command.instruction), lint)
    inputs: list[int] = [context.root(state)]
    if isinstance(item, Add) and item.checksum:
        _check_checksum(item)
    elif command.sources and not command.sources[0].dispatched:
        name = item.from_ if isinstance(item, Copy) else ""
        raise Fault(
            f"cannot copy from stage {quote(name)}, it needs to be defined before current stage {quote(state.name)}",
            mark=f"--from={name}",
        )
    if item.chmod:
        check_chmod(item.chmod)
    name = context.step_name(state, item.source)
    sources = _Sources(context, state, item, command.sources, inputs, lint)
    copy_sources = sources.collect()
    is_add = isinstance(item, Add)
    op = CopyOp(
        copy_sources, destination(state, item.dest), item.chown, item.chmod,
        item.link and not item.chmod,  # BuildKit: --link with --chmod is silently no link
        isinstance(item, Copy) and item.parents, item.exclude, item.unpack if isinstance(item, Add) else False,
        is_add,
    )  # fmt: skip
    state.vertex = context.vertex(
        op, tuple(inputs), name, ignore_cache=state.ignore_cache, location=item.location
    )
    state.commit(context.budget, _history(item), state.vertex, buildkit=True)


def _expanded(context: Context, state: State, item: Transfer, lint: Linter) -> Transfer:
    expand = context.expand(state, item, lint)
    changes: dict[str, object] = {"chown": expand(item.chown), "chmod": expand(item.chmod)}
    if isinstance(item, Add):
        changes["checksum"] = expand(item.checksum)
    changes["sources"] = tuple(expand(source) for source in item.sources)
    changes["dest"] = expand(item.dest)
    if any("$" in pattern for pattern in item.exclude):
        changes["exclude"] = tuple(expand(pattern) for pattern in item.exclude)
    changes["contents"] = tuple(
        replace(inline, data=context.expand_body(state, item, lint, inline.data)) if inline.expand else inline
        for inline in item.contents
    )
    return replace(item, **changes)  # type: ignore[arg-type]


def _check_checksum(add: Add) -> None:
    if len(add.sources) != 1:
        raise Fault("checksum can't be specified for multiple sources", mark="--checksum")
    source = add.sources[0]
    known_git = add.keep_git_dir is not None
    if parse_git_ref(source, known_git=known_git) is not None:
        return
    if not is_http(source):
        raise Fault("checksum requires HTTP(S) or Git sources", mark="--checksum")
    if not _DIGEST.match(add.checksum):
        algorithm, colon, _ = add.checksum.partition(":")
        if not colon:
            raise Fault("invalid checksum digest format", mark=add.checksum)
        if algorithm not in ("sha256", "sha384", "sha512"):
            raise Fault("unsupported digest algorithm", mark=add.checksum)
        raise Fault("invalid checksum digest length", mark=add.checksum)


def _history(item: Transfer) -> str:
    words = ["ADD" if isinstance(item, Add) else "COPY"]
    if isinstance(item, Copy) and item.parents:
        words.append("--parents")
    if item.chown:
        words.append(f"--chown={item.chown}")
    if item.chmod:
        words.append(f"--chmod={item.chmod}")
    words += item.sources
    words += (f"<<{inline.path}" for inline in item.contents)
    return " ".join([*words, item.dest])


def _inline(inline: Inline) -> InlineFile:
    path = inline.path.lstrip("/")
    if "/" in path or path in ("", ".", ".."):
        raise Fault(f"heredoc {quote(inline.path)}: the name of an inline file can't be a path", mark=inline.path)
    return InlineFile(path, inline.data.encode("utf-8", "surrogateescape"))


class _Sources:
    """The sources of one instruction, in order; neighbours from one place are one CopySource."""

    def __init__(
        self, context: Context, state: State, item: Transfer, states: tuple[State, ...], inputs: list[int],
        lint: Linter,
    ) -> None:  # fmt: skip
        self.context = context
        self.state = state
        self.item = item
        self.states = states
        self.inputs = inputs
        self.lint = lint
        self.found: list[tuple[int, list[str]]] = []

    def collect(self) -> tuple[CopySource, ...]:
        item = self.item
        known_git = isinstance(item, Add) and item.keep_git_dir is not None
        for source in item.sources:
            git = parse_git_ref(source, known_git=known_git)
            if git is not None and not git.local:
                self._git(source, git)
            elif source.startswith(("http://", "https://")):
                self._http(source)
            else:
                self._local(source)
        out = [CopySource(index, tuple(paths)) for index, paths in self.found]
        if item.contents:
            out.append(CopySource(None, inline=tuple(map(_inline, item.contents))))
        return tuple(out)

    def _input(self, vertex: int) -> int:
        try:
            return self.inputs.index(vertex, 1)
        except ValueError:
            self.inputs.append(vertex)
            return len(self.inputs) - 1

    def _add(self, vertex: int, path: str) -> None:
        index = self._input(vertex)
        if self.found and self.found[-1][0] == index:
            self.found[-1][1].append(path)
        else:
            self.found.append((index, [path]))

    def _local(self, source: str) -> None:
        if self.states:
            self._add(self.context.root(self.states[0]), source)
            return
        ignore = self.context.ignore
        # With exceptions nothing can be said before the files are seen.
        if ignore is not None and not ignore.has_exceptions:
            path = clean(source)
            hidden = ignore.hides_root() if path in (".", "/") else ignore.matches(path)
            if hidden:
                verb = "Add" if isinstance(self.item, Add) else "Copy"
                message = f"Attempting to {verb} file {quote(path)} that is excluded by .dockerignore"
                self.lint.warn(COPY_IGNORED, message, self.item.location)
        self._add(self.context.main_context(), source)

    def _http(self, source: str) -> None:
        if not isinstance(self.item, Add):
            raise Fault("source can't be a URL for COPY", mark=source, hint="ADD downloads URLs")
        try:
            name = clean(unquote(urlsplit(source).path)).rpartition("/")[2]
        except ValueError:
            name = ""
        op = HttpSource(source, name if name not in ("", ".", "..") else UNNAMED, self.item.checksum)
        vertex = self.context.vertex(
            op, name=f"ADD {source}", ignore_cache=self.state.ignore_cache, location=self.item.location
        )
        self._add(vertex, op.filename)

    def _git(self, source: str, git: GitRef) -> None:
        add = self.item
        if not isinstance(add, Add):
            raise Fault("source can't be a git ref for COPY", mark=source, hint="ADD clones repositories")
        if add.keep_git_dir is not None and git.keep_git_dir not in (None, add.keep_git_dir):
            raise Fault("inconsistent keep-git-dir configuration", mark=source)
        if add.checksum and git.checksum and add.checksum != git.checksum:
            raise Fault(f"checksum mismatch {quote(add.checksum)} != {quote(git.checksum)}", mark=source)
        op = git_source(git, keep_git_dir=bool(add.keep_git_dir), checksum=add.checksum)
        vertex = self.context.vertex(
            op, name=f"ADD {source}", ignore_cache=self.state.ignore_cache, location=add.location
        )
        self._add(vertex, "/")
