"""Why a key is not the key that it was: two preimages compared, in words for people.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ocibuildd.layer.checksum import MAX_EXPLAINED

from .cache import Input, Preimage

MAX_FILES_NAMED = 10
MAX_VALUE_SHOWN = 120
_PLACE = re.compile(r"\[[^]]*\] ")
"""What stands before an instruction in a vertex's name: ``[stage 2/5] ``."""
_SHORT = re.compile(r"(\d+(?: \d+:\d+)?):(.*)", re.DOTALL)
_WORDS = {
    "user": "the user", "cwd": "the working directory", "network": "the network", "security": "the security mode",
    "hostname": "the host name", "devices": "the devices", "chown": "--chown", "chmod": "--chmod",
    "link": "--link", "parents": "--parents", "exclude": "--exclude", "unpack": "--unpack",
    "checksum": "--checksum", "keep_git_dir": "--keep-git-dir",
}
"""Fields of operations, in the words of a Dockerfile."""


@dataclass(frozen=True, slots=True)
class Reason:
    """kind: first | no-cache | instruction | argument | file | parent | base | mount | secret |
    option | evicted | hit.  ``text`` is a clause that follows "because"."""

    kind: str
    text: str

    def to_dict(self) -> dict[str, str]:
        return {"kind": self.kind, "text": self.text}


def compare(old: Preimage, new: Preimage) -> list[Reason]:
    """What changed between two runs of the same instruction; [] when nothing did."""
    reasons = [*_fields(old.op, new.op), *_inputs(old.inputs, new.inputs)]
    if old.variant != new.variant:
        reasons += _variant(old.variant, new.variant)
    return reasons


def _variant(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Reason]:
    """Output options that are part of keys (``clamp``: seconds since the epoch)."""
    reasons = []
    for name in sorted({*old, *new}):
        was, now = old.get(name), new.get(name)
        if was == now:
            continue
        if name != "clamp":
            text = f"output option {name} changed: {_short(was)} → {_short(now)}"
        elif was is None:
            text = f"timestamps are clamped to {now} now (--reproducible, SOURCE_DATE_EPOCH)"
        elif now is None:
            text = "timestamps are clamped no longer (--reproducible, SOURCE_DATE_EPOCH)"
        else:
            text = f"the time that timestamps are clamped to changed: {was} → {now}"
        reasons.append(Reason("option", text))
    return reasons


def _fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Reason]:
    if old.get("kind") != new.get("kind"):
        return [Reason("instruction", f"it was {old.get('kind')}, and is {new.get('kind')}")]
    reasons: list[Reason] = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        match name:
            case "env":
                reasons += _environment(before or [], after or [])
            case "args" | "sources" | "dest" | "path" | "url" | "remote":
                reasons += _text(name, before, after)
            case "files":
                reasons += _heredocs(before or [], after or [])
            case "mounts":
                reasons += _mounts(before or [], after or [])
            case _:
                word = _WORDS.get(name, name)
                reasons.append(Reason("option", f"{word} changed: {_told(before)} → {_told(after)}"))
    return reasons


def _mounts(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[Reason]:
    """By target, each with the options that differ."""
    before = {str(mount["target"]): mount for mount in old}
    after = {str(mount["target"]): mount for mount in new}
    reasons = []
    for target in dict.fromkeys((*after, *before)):
        was, now = before.get(target), after.get(target)
        if was is None or now is None:
            mount, what = (now, "added") if was is None else (was, "removed")
            kind = mount["type"] if mount is not None else ""
            reasons.append(Reason("mount", f"the {kind} mount {target} was {what}"))
        elif was != now:
            differ = [
                f"{name} {_told(was.get(name))} → {_told(now.get(name))}"
                for name in sorted({*was, *now}) if was.get(name) != now.get(name)
            ]
            kind = "secret" if now["type"] == "secret" else "mount"
            reasons.append(Reason(kind, f"the {now['type']} mount {target} changed: {', '.join(differ)}"))
    return reasons or [Reason("mount", "the order of its mounts changed")]


def _told(value: Any) -> str:
    """A field's value; what isn't set is the default."""
    if isinstance(value, list):
        value = " ".join(map(str, value))
    return "the default" if value is None or value == "" else _short(value)


def _environment(old: Sequence[Any], new: Sequence[Any]) -> list[Reason]:
    before = {str(k): str(v) for k, v in old}
    after = {str(k): str(v) for k, v in new}
    reasons = []
    for name in sorted({*before, *after}):
        was, now = before.get(name), after.get(name)
        if was == now:
            continue
        if was is None:
            text = f"variable {name} was added ({_short(now)})"
        elif now is None:
            text = f"variable {name} was removed (it was {_short(was)})"
        else:
            text = f"variable {name} changed: {_short(was)} → {_short(now)}"
        reasons.append(Reason("argument", text))
    return reasons or [Reason("argument", "the order of its variables changed")]


def _text(name: str, old: Any, new: Any) -> list[Reason]:
    if name == "args":
        shown = [_shown(old), _shown(new)]
        if shown[0] == shown[1]:  # in another shell
            shown = [" ".join(map(str, args or [])) for args in (old, new)]
        return [Reason("instruction", f"the command changed: {_short(shown[0])} → {_short(shown[1])}")]
    if name == "sources":
        reasons = _heredocs([f for s in old or [] for f in s.get("inline", [])],
                            [f for s in new or [] for f in s.get("inline", [])])
        paths = [[p for s in side or [] for p in s.get("paths", [])] for side in (old, new)]
        if paths[0] != paths[1]:
            reasons.append(Reason("instruction", f"the sources changed: {_short(' '.join(paths[0]))}"
                                                 f" → {_short(' '.join(paths[1]))}"))
        return reasons or [Reason("instruction", "where it copies from changed")]
    return [Reason("instruction", f"{name} changed: {_short(old)} → {_short(new)}")]


def _shown(args: Any) -> str:
    words = [str(a) for a in args or []]
    return words[-1] if len(words) == 3 and words[1] == "-c" else " ".join(words)


def _heredocs(old: Sequence[Any], new: Sequence[Any]) -> list[Reason]:
    before, after = ({f["name"]: (f["sha256"], f["mode"]) for f in side} for side in (old, new))
    changed = sorted(n for n in {*before, *after} if before.get(n) != after.get(n))
    return [Reason("instruction", f"heredoc {name} changed") for name in changed]


def _inputs(old: Sequence[Input], new: Sequence[Input]) -> list[Reason]:
    before, after = {i.role: i for i in old}, {i.role: i for i in new}
    reasons: list[Reason] = []
    for role in dict.fromkeys((*after, *before)):
        was, now = before.get(role), after.get(role)
        if was is not None and now is not None and was.identity == now.identity:
            continue
        if was is None or now is None:
            reasons.append(Reason("mount", f"{role} was {'added' if was is None else 'removed'}"))
        elif now.selected or was.selected:
            reasons += _files(was, now)
        elif role == "root":
            reasons.append(_root(was, now))
        else:
            what = f"what is mounted at {role[6:]}" if role.startswith("mount ") else f"the {role}"
            whose = f", from {now.name}," if now.name else ""
            reasons.append(Reason("parent", f"{what}{whose} changed"))
    return reasons


def _root(was: Input, now: Input) -> Reason:
    before, after = (_PLACE.sub("", each.name, count=1) for each in (was, now))
    if after.startswith("FROM "):
        if not before.startswith("FROM ") or before == after:
            return Reason("base", f"the base image changed: {after[5:]}")
        return Reason("base", f"the base image changed: {before[5:]} → {after[5:]}")
    if before and after and before != after:
        return Reason("parent", f"another step is before it now: {_short(now.name)} (it was {_short(before)})")
    return Reason("parent", f"the step before changed: {now.name}" if now.name
                  else "the step before changed")


def _files(was: Input, now: Input) -> list[Reason]:
    """Which of the selected files changed; ``Checksum.files`` says what the short digests are."""
    if not was.files or not now.files:  # one side isn't known: nothing can be said of single files
        return [Reason("file", f"the files of {now.name or now.role} changed")]
    unknown = {*_beyond(was.files, now.files), *_beyond(now.files, was.files)}
    names = sorted(path for path in {*was.files, *now.files} - unknown
                   if was.files.get(path) != now.files.get(path))
    if not names:
        return [Reason("file", f"the files of {now.name or now.role} changed")]
    reasons = []
    for path in names[:MAX_FILES_NAMED]:
        if path not in was.files:
            what = "was added"
        elif path not in now.files:
            what = "was removed"
        else:
            what = _how(was.files[path], now.files[path])
        reasons.append(Reason("file", f"{path} {what}"))
    if len(names) > MAX_FILES_NAMED:
        reasons.append(Reason("file", f"and {len(names) - MAX_FILES_NAMED:,} more files changed"))
    return reasons


def _beyond(files: Mapping[str, str], others: Mapping[str, str]) -> list[str]:
    """Files that come after the last one that both sides know, where the other side's list was cut off."""
    if len(others) < MAX_EXPLAINED:
        return []
    found = []
    for path in reversed([*files]):
        if path in others:
            break
        found.append(path)
    return found


def _how(was: str, now: str) -> str:
    """Short digests may be ``meta:content``: then tell the two apart.  ``->TARGET`` is a symbolic link's content;
    what ends in "+" has extended attributes, or the file has."""
    old, new = _SHORT.fullmatch(was), _SHORT.fullmatch(now)
    if old is None or new is None:
        return "changed its content"
    (old_meta, old_content), (new_meta, new_content) = old.groups(), new.groups()
    if old_content == new_content:
        return f"changed its mode or owner ({old_meta} → {new_meta})"
    links = [content.startswith("->") for content in (old_content, new_content)]
    if all(links):
        return f"links to {_short(new_content[2:])} now (it was {_short(old_content[2:])})"
    if any(links):
        return "is a symbolic link now" if links[1] else "is no symbolic link any more"
    if old_content.endswith("+") or new_content.endswith("+"):
        return "changed its content or extended attributes"
    return "changed its content"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = text.replace("\n", "\\n")
    return text if len(text) <= MAX_VALUE_SHOWN else text[: MAX_VALUE_SHOWN - 1] + "…"
