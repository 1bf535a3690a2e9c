"""Git sources as ADD and contexts name them: ``URL[#ref[:subdir]]`` and ``URL?ref=…&subdir=…``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from ..model.graph import GitSource
from .faults import Fault
from .gotext import parse_bool, quote

MAX_URL = 8192
_SCHEME = re.compile(r"([a-zA-Z0-9]+)://")
_SCP = re.compile(r"(?:(?P<user>[a-zA-Z0-9-_]+)@)(?P<host>[a-zA-Z0-9-.]+):(?P<path>[^#?]*)(?P<rest>.*)\Z", re.DOTALL)
_FLAGS = ("submodules", "keep-git-dir")


@dataclass(slots=True)
class GitRef:
    """A parsed git source.  local: it could as well be a path (``github.com/a/b``)."""

    remote: str
    ref: str = ""
    subdir: str = ""
    checksum: str = ""
    keep_git_dir: bool | None = None
    submodules: bool | None = None
    mtime: str = ""
    local: bool = False


def parse_git_ref(text: str, *, known_git: bool = False) -> GitRef | None:
    """Read a git source; None for anything else.

    ``known_git``: an HTTP URL needs no ``.git`` at its end.  Raises Fault for a git URL with a bad query."""
    if len(text) > MAX_URL or text.startswith(("./", "../", "-")):
        return None
    local = text.startswith("github.com/")
    scheme = _SCHEME.match(text)
    if local:
        text = "https://" + text
    elif scheme is None:
        return _scp(text)
    elif scheme[1].lower() not in ("http", "https", "ssh", "git"):
        return None
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:
        return None
    if not url.netloc or url.netloc.startswith("-") or any(char.isspace() or char < " " for char in text):
        return None
    if url.scheme in ("http", "https") and not known_git and not local and not url.path.endswith(".git"):
        return None
    remote = urlunsplit((url.scheme, url.netloc, url.path, "", ""))
    return _finish(remote.removeprefix("https://") if local else remote, url.fragment, url.query, local=local)


def _scp(text: str) -> GitRef | None:
    found = _SCP.match(text)
    if found is None or found["host"].startswith("-") or found["path"].startswith("-"):
        return None
    query, _, fragment = found["rest"].partition("#")
    remote = f"{found['user']}@{found['host']}:{found['path']}"
    return _finish(remote, fragment, query.removeprefix("?"), local=False)


def _finish(remote: str, fragment: str, query: str, *, local: bool) -> GitRef:
    ref, _, subdir = fragment.partition(":")
    git = GitRef(remote, ref, subdir, local=local)
    if query:
        _load_query(git, query)
    for value in (git.ref, git.subdir, git.checksum):
        if value.startswith("-") or "\0" in value:
            raise Fault(f"{quote(value[:100])} is no git ref: it begins with a dash", mark=value)
    return git


def _load_query(git: GitRef, query: str) -> None:
    seen: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True, max_num_fields=32):
        if key in seen:
            raise Fault(f"query {quote(key)} has multiple values")
        if not value and key not in _FLAGS:
            raise Fault(f"query {quote(key)} has no value")
        seen[key] = value
        _load_field(git, key, value)
    if "tag" in seen and "branch" in seen:
        raise Fault("branch conflicts with tag")
    for key, prefix in (("tag", "refs/tags/"), ("branch", "refs/heads/")):
        if key in seen:
            ref = seen[key] if seen[key].startswith(prefix) else prefix + seen[key]
            if git.ref and git.ref != ref:
                raise Fault(f"ref conflicts: {quote(git.ref)} vs {quote(ref)}")
            git.ref = ref
    if git.checksum and not git.ref:
        git.ref = git.checksum


def _load_field(git: GitRef, key: str, value: str) -> None:
    match key:
        case "ref" | "subdir":
            before = getattr(git, key)
            if before and before != value:
                raise Fault(f"{key} conflicts: {quote(before)} vs {quote(value)}")
            setattr(git, key, value)
        case "checksum" | "commit":
            git.checksum = value
        case "keep-git-dir" | "submodules":
            setattr(git, key.replace("-", "_"), _flag(key, value))
        case "mtime":
            if value not in ("checkout", "commit"):
                raise Fault(f"invalid mtime value: {quote(value)}")
            git.mtime = value
        case "fetch-by-commit":
            _flag(key, value)
        case "tag" | "branch":
            pass
        case _:
            raise Fault(f"unexpected query {quote(key)}")


def _flag(key: str, value: str) -> bool:
    try:
        return parse_bool(value) if value else True
    except ValueError:
        raise Fault(f"invalid {key} value: {quote(value)}") from None


def git_source(ref: GitRef, *, keep_git_dir: bool = False, checksum: str = "") -> GitSource:
    """The operation for a git source."""
    remote = f"https://{ref.remote}" if ref.local else ref.remote
    return GitSource(
        remote, ref.ref, ref.subdir, checksum or ref.checksum, keep_git_dir or bool(ref.keep_git_dir),
        ref.submodules is not False, "commit" if ref.mtime == "commit" else "checkout",
    )  # fmt: skip
