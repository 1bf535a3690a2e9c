"""Cache keys: what they are made from, and why one differs from another.  Pure.

A key is the sha256 of a *preimage*: the operation (every field that can change its result and none
that can't) and the identities of its inputs.  The *identity* of a result is its content: the chain
of diff ids for an image, and for each step ``H(identity before, content of the layer)``.  Keys are
thus made from what inputs are, never from how they came about: a step that ran again and gave the
same files leaves every key after it as it was (early cutoff), and a step that changed nothing has
its parent's identity.

In no key: times, proxy arguments, hosts added with --add-host, paths on the host, values of
secrets, ids of cache mounts (they are no input, they are a place to work in).

The preimage is kept beside the record as JSON, with what explains it in the field ``about``, which
is not hashed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ocibuildd.model.graph import Copy, GitSource, HttpSource, InlineFile, Mkdir, Mount, Op, Run

VERSION = 1
"""Raised whenever the meaning of a field changes: older records never match again."""
MAX_ARGUMENT_SHOWN = 200


_canonical = json.JSONEncoder(
    ensure_ascii=True, sort_keys=True, separators=(",", ":"), allow_nan=False
).encode


def frame(*parts: object) -> bytes:
    """JSON-like values as bytes; different ones never give the same bytes.

    Each part is canonical JSON (keys sorted, strings quoted and escaped, so that nothing inside can be
    shifted from one field to the next) with its length before it.  Tuples and lists are the same.
    Raises TypeError for what JSON can't say, bytes among it."""
    out = []
    for part in parts:
        data = _canonical(part).encode("ascii")
        out.append(b"%d:%s," % (len(data), data))
    return b"".join(out)


def digest(parts: Sequence[object]) -> str:
    """64 hex digits over :func:`frame`."""
    return hashlib.sha256(frame(*parts)).hexdigest()


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a vertex as keys see it.

    role: "root" (the file system it stands on), "source N", "mount TARGET".
    identity: of the whole result, or of the selected content (then ``selected``).
    files: {path: short digest} of what was selected, for explaining; not hashed.
    selection: where ``files`` is empty, the key of the record that has them; neither hashed nor kept.
    """

    role: str
    identity: str
    selected: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    selection: str = ""


@dataclass(frozen=True, slots=True)
class Preimage:
    """What a key is made from.  ``about`` explains and is not hashed."""

    op: Mapping[str, Any]
    inputs: tuple[Input, ...] = ()
    variant: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def op_digest(self) -> str:
        """The operation without its inputs."""
        return digest(["op", VERSION, self.op, self.variant])

    @property
    def selector(self) -> str:
        """The instruction, whatever its arguments, environment and inputs."""
        return digest(["selector", VERSION, _instruction(self.op)])

    @property
    def key(self) -> str:
        return digest(["key", VERSION, self.op, self.variant,
                       [[i.role, i.identity, i.selected] for i in self.inputs]])

    def to_json(self) -> str:
        inputs = [
            {"role": i.role, "id": i.identity, **({"selected": True} if i.selected else {}),
             **({"files": dict(i.files)} if i.files else {}), **({"name": i.name} if i.name else {})}
            for i in self.inputs
        ]
        body = {"v": VERSION, "op": self.op, "inputs": inputs, "about": self.about}
        if self.variant:
            body["variant"] = self.variant
        return json.dumps(body, separators=(",", ":"), ensure_ascii=True)

    @classmethod
    def from_json(cls, text: str) -> Preimage:
        """Raises ValueError when it is none of ours."""
        try:
            body = json.loads(text)
            inputs = tuple(
                Input(i["role"], i["id"], i.get("selected", False), i.get("files", {}), i.get("name", ""))
                for i in body["inputs"]
            )
            return cls(body["op"], inputs, body.get("variant", {}), body.get("about", {}))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"preimage: {error!r}") from None


# --- operations ---------------------------------------------------------------------------------


def describe(op: Op) -> dict[str, Any]:
    """The fields of an operation that its result depends on.  Raises TypeError for sources that
    have an identity of their own (images, contexts)."""
    match op:
        case Run():
            return _run(op)
        case Copy():
            return _copy(op)
        case Mkdir():
            return {"kind": "mkdir", "path": op.path, "user": op.user}
        case HttpSource():
            return {"kind": "http", "url": op.url, "filename": op.filename, "checksum": op.checksum,
                    "mode": op.mode, "uid": op.uid, "gid": op.gid}
        case GitSource():
            return {"kind": "git", "remote": op.remote, "ref": op.ref, "subdir": op.subdir,
                    "checksum": op.checksum, "keep_git_dir": op.keep_git_dir,
                    "submodules": op.submodules, "mtime": op.mtime}
    raise TypeError(f"{type(op).__name__} has no key of its own")


def _run(op: Run) -> dict[str, Any]:
    return {
        "kind": "run",
        "args": list(op.args),
        "env": [list(pair) for pair in op.env],
        "cwd": op.cwd,
        "user": op.user,
        "mounts": [_mount(mount) for mount in op.mounts],
        "network": op.network,
        "security": op.security,
        "devices": list(op.devices),
        "hostname": op.hostname,
        "files": _inline(op.files),
    }


def _mount(mount: Mount) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "type": mount.type, "target": mount.target, "readonly": mount.readonly, "mode": mount.mode,
        "uid": mount.uid, "gid": mount.gid,
    }
    if mount.type == "bind":
        fields["source"] = mount.source
    if mount.type == "tmpfs":
        fields["size"] = mount.size
    if mount.type in {"secret", "ssh"}:
        fields |= {"id": mount.id, "env": mount.env, "required": mount.required}
    return fields


def _copy(op: Copy) -> dict[str, Any]:
    return {
        "kind": "copy",
        "sources": [
            {"paths": list(s.paths), "inline": _inline(s.inline), "input": s.input is not None}
            for s in op.sources
        ],
        "dest": op.dest, "chown": op.chown, "chmod": op.chmod, "link": op.link,
        "parents": op.parents, "exclude": list(op.exclude), "unpack": op.unpack, "add": op.is_add,
    }


def _inline(files: Sequence[InlineFile]) -> list[dict[str, Any]]:
    return [{"name": f.name, "mode": f.mode, "sha256": hashlib.sha256(f.data).hexdigest()}
            for f in files]


def _instruction(op: Mapping[str, Any]) -> list[Any]:
    match op["kind"]:
        case "run":
            return ["run", op["args"], [m["target"] for m in op["mounts"]],
                    [f["name"] for f in op["files"]]]
        case "copy":
            return ["copy", [s["paths"] for s in op["sources"]], op["dest"]]
        case "mkdir":
            return ["mkdir", op["path"]]
        case "http":
            return ["http", op["url"]]
        case "git":
            return ["git", op["remote"]]
    return [op["kind"]]


def independent_of_root(op: Op) -> bool:
    """Does the layer come out the same whatever it is laid on?  COPY --link with numeric owners."""
    if not isinstance(op, Copy) or not op.link:
        return False
    user, _, group = op.chown.partition(":")
    return all(part == "" or part.isdigit() for part in (user, group))


# --- identities ---------------------------------------------------------------------------------

SCRATCH = digest(["scratch"])


def image_identity(diff_ids: Sequence[str]) -> str:
    """What an image's root file system is: its diff ids.  The same content under another manifest,
    compression or name has the same identity."""
    return digest(["image", list(diff_ids)]) if diff_ids else SCRATCH


def layer_identity(parent: str, content: str) -> str:
    """What stands after a layer; ``content`` "" (no entries) changes nothing."""
    return digest(["layer", parent, content]) if content else parent


def identity_key(identity: str, variant: Mapping[str, Any]) -> str:
    """The key of the record that says which layers first gave this identity (early cutoff)."""
    return digest(["identity", VERSION, identity, variant])


def selection_key(identity: str, paths: Sequence[str], options: Mapping[str, Any]) -> str:
    """The key of the record that keeps the content digest of files selected from a known result."""
    return digest(["selection", VERSION, identity, list(paths), options])
