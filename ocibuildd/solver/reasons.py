"""Why a key is not the key that it was: two preimages compared, in words for people.  Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .cache import Input, Preimage

MAX_FILES_NAMED = 10
MAX_VALUE_SHOWN = 120


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
        reasons.append(Reason("option", f"output options changed: {_short(old.variant)} → "
                                        f"{_short(new.variant)}"))
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
                reasons.append(Reason("mount", "its --mount options changed"))
            case _:
                reasons.append(Reason("option", f"{name} changed: {_short(before)} → {_short(after)}"))
    return reasons


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
        return [Reason("instruction", f"the command changed: {_short(_shown(old))} → "
                                      f"{_short(_shown(new))}")]
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
            reasons.append(Reason("parent", f"{now.name or role} changed"))
    return reasons


def _root(was: Input, now: Input) -> Reason:
    if now.name.startswith("FROM "):
        old = f" (it was {was.name[5:]})" if was.name not in ("", now.name) else ""
        return Reason("base", f"the base image {now.name[5:]} changed{old}")
    return Reason("parent", f"the step before changed: {now.name}" if now.name
                  else "the step before changed")


def _files(was: Input, now: Input) -> list[Reason]:
    """Which of the selected files changed; short digests are ``content[:mode…]``."""
    names = sorted(path for path in {*was.files, *now.files}
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


def _how(was: str, now: str) -> str:
    """Short digests may be ``meta:content``: then tell the two apart."""
    old_meta, colon, old_content = was.rpartition(":")
    new_meta, _, new_content = now.rpartition(":")
    if colon and old_content == new_content and old_meta != new_meta:
        return f"changed its mode or owner ({old_meta} → {new_meta})"
    return "changed its content"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = text.replace("\n", "\\n")
    return text if len(text) <= MAX_VALUE_SHOWN else text[: MAX_VALUE_SHOWN - 1] + "…"
