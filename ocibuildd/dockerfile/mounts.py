"""``RUN --mount``: a comma-separated value → its checked parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..model.graph import MountType
from .faults import Fault, did_you_mean
from .gotext import parse_bool, parse_int, parse_size, quote

TYPES: tuple[MountType, ...] = ("bind", "cache", "tmpfs", "secret", "ssh")
SHARING = ("shared", "private", "locked")
KEYS = (
    "type", "from", "source", "target", "readonly", "id", "sharing", "required", "size", "mode", "uid", "gid",
    "src", "dst", "destination", "ro", "rw", "readwrite", "env",
)  # fmt: skip
_SAME = {
    "src": "source", "dst": "target", "destination": "target", "ro": "readonly", "rw": "readwrite",
}  # fmt: skip


@dataclass(slots=True)
class MountFlag:
    """One --mount.  env: None = not given; mode, uid, gid: None = the type's own."""

    type: MountType = "bind"
    from_: str = ""
    source: str = ""
    target: str = ""
    readonly: bool = True
    size: int = 0
    id: str = ""
    sharing: Literal["", "shared", "private", "locked"] = ""
    required: bool = False
    env: str | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None


def csv_fields(text: str) -> list[str]:
    """The fields of one CSV line (RFC 4180: quoted fields, doubled quotes).  Raises Fault."""
    if not text:
        raise Fault("EOF")
    if '"' not in text:
        return text.split(",")
    fields: list[str] = []
    pos = 0
    while True:
        if text.startswith('"', pos):
            field, pos = _quoted_field(text, pos)
        else:
            end = text.find(",", pos)
            end = len(text) if end < 0 else end
            field = text[pos:end]
            if '"' in field:
                column = pos + field.index('"') + 1
                raise Fault(f'parse error on line 1, column {column}: bare " in non-quoted-field')
            pos = end
        fields.append(field)
        if pos == len(text):
            return fields
        pos += 1


def _quoted_field(text: str, pos: int) -> tuple[str, int]:
    parts: list[str] = []
    pos += 1
    while True:
        end = text.find('"', pos)
        if end < 0:
            raise Fault(f'parse error on line 1, column {len(text) + 1}: extraneous or missing " in quoted-field')
        parts.append(text[pos:end])
        pos = end + 1
        if not text.startswith('"', pos):
            break
        parts.append('"')
        pos += 1
    if pos < len(text) and text[pos] != ",":
        raise Fault(f'parse error on line 1, column {pos + 1}: extraneous or missing " in quoted-field')
    return "".join(parts), pos


def _split(value: str) -> list[str]:
    try:
        return csv_fields(value)
    except Fault as fault:
        raise Fault(f"failed to parse csv mounts: {fault.message}", mark=value) from None


def check_mount(value: str) -> str:
    """What can be known before expansion: the form, and that ``from`` has no variable.

    Gives ``from``: stages depend on one another by it.  Raises Fault."""
    source = ""
    if value and '"' not in value and "from=" not in value.lower():
        return source
    for field in _split(value):
        key, equals, text = field.partition("=")
        if equals and key.lower() == "from":
            dollar = text.find("$")
            if dollar >= 0 and dollar != len(text) - 1:
                raise Fault("'from' doesn't support variable expansion, define alias stage instead", mark=field)
            source = text
    return source


def parse_mount(value: str, expand: Callable[[str], str]) -> MountFlag:
    """Read one --mount, its values expanded.  Raises Fault."""
    mount = MountFlag()
    readonly: bool | None = None
    for field in _split(value):
        key, equals, text = field.partition("=")
        key = key.lower()
        known = _SAME.get(key, key)
        if not equals:
            if known not in ("readonly", "readwrite", "required"):
                raise Fault(f"invalid field '{field}' must be a key=value pair", mark=field)
            text = "true"
        else:
            text = expand(text)
        if known in ("readonly", "readwrite"):
            readonly = _bool(key, text) is (known == "readonly")
        elif known in ("required", "size"):
            _typed(mount, key, text)
        else:
            _plain(mount, known, key, text, field)
    _check(mount)
    mount.readonly = readonly if readonly is not None else mount.type not in ("cache", "tmpfs")
    return mount


def _bool(key: str, text: str) -> bool:
    try:
        return parse_bool(text)
    except ValueError:
        raise Fault(f"invalid value for {key}: {text}", mark=text) from None


def _typed(mount: MountFlag, key: str, text: str) -> None:
    """Keys that only some types have, and only after ``type``."""
    allowed = ("tmpfs",) if key == "size" else ("secret", "ssh")
    if mount.type not in allowed:
        raise Fault(f"unexpected key '{key}' for mount type '{mount.type}'", mark=key)
    if key == "required":
        mount.required = _bool(key, text)
        return
    try:
        mount.size = parse_size(text)
    except ValueError:
        raise Fault(f"invalid value for {key}: {text}", mark=text) from None


def _plain(mount: MountFlag, known: str, key: str, text: str, field: str) -> None:
    match known:
        case "type":
            kind = next((kind for kind in TYPES if kind == text.lower()), None)
            if kind is None:
                raise Fault(did_you_mean(f"unsupported mount type {quote(text)}", text, TYPES), mark=text)
            mount.type = kind
        case "from":
            mount.from_ = text
        case "source":
            mount.source = text
        case "target":
            mount.target = text
        case "id":
            mount.id = text
        case "env":
            mount.env = text
        case "sharing":
            if text.lower() not in SHARING:
                raise Fault(did_you_mean(f"unsupported sharing value {quote(text)}", text, SHARING), mark=text)
            mount.sharing = text.lower()  # type: ignore[assignment]
        case "mode" | "uid" | "gid":
            try:
                number = parse_int(text, 8 if known == "mode" else 10, 32, signed=False)
            except ValueError:
                raise Fault(f"invalid value {text} for {known}", mark=text) from None
            setattr(mount, known, number)
        case _:
            raise Fault(did_you_mean(f"unexpected key '{key}' in '{field}'", key, KEYS), mark=field)


def _check(mount: MountFlag) -> None:
    kind = mount.type
    if kind not in ("secret", "ssh", "cache"):
        for name in ("mode", "uid", "gid"):
            if getattr(mount, name) is not None:
                raise Fault(f"{name} not allowed for {quote(kind)} type mounts", mark=f"{name}=")
    if kind == "secret":
        if mount.from_:
            raise Fault("secret mount should not have a from", mark="from=")
        if mount.sharing:
            raise Fault("secret mount should not define sharing", mark="sharing=")
        if not (mount.source or mount.target or mount.id):
            raise Fault("invalid secret mount. one of source, target required", mark="type=secret")
        if mount.source and mount.id:
            raise Fault("both source and id can't be set", mark="type=secret")
    if mount.sharing and kind != "cache":
        raise Fault(f"invalid cache sharing set for {kind} mount", mark="sharing=")
