"""Runs the front end over a corpus of Dockerfiles and compares with what BuildKit's parser and converter say.

    python conformance/dockerfiles.py [--corpus TAR] [--expected JSONL] [--emit] [--only NAME]

TAR is a tar archive (or a directory) of Dockerfiles, JSONL one JSON object a file (either may be
gzipped); by default both lie in $OCIBUILD_CONFORMANCE/dockerfiles, else in
``../shared/conformance/dockerfiles`` beside the checkout.  Every base image is one fixed stand-in.

Compared, each with its own count: the class (parse error, instruction error, convert error, none), the
dump of the syntax tree, the line range of every instruction, the final image config with its history, and
the multiset of (rule, line) of the build checks.  Each file that differs is named, and why.
``--emit`` prints our own answer instead, a line a file, in the shape of JSONL.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from ocibuildd import dockerfile as front
from ocibuildd.dockerfile import instructions as ins
from ocibuildd.dockerfile.faults import Fault
from ocibuildd.dockerfile.gotext import to_utf8
from ocibuildd.dockerfile.lexer import detect_syntax
from ocibuildd.dockerfile.mounts import MountFlag, check_mount, parse_mount
from ocibuildd.dockerfile.syntax import Node
from ocibuildd.errors import DockerfileError
from ocibuildd.model.digest import Digest
from ocibuildd.model.graph import Plan
from ocibuildd.model.oci import ContainerConfig, History, ImageConfig, RootFS

TARGETS = {"class": 100.0, "dump": 99.5, "lines": 99.5, "image": 99.0, "lint": 97.0}
MAX_SHOWN = 300
OPTIONS = front.LowerOptions()
BASE = ImageConfig(
    architecture="amd64",
    os="linux",
    config=ContainerConfig(
        env=("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",), cmd=("sh",)
    ),
    rootfs=RootFS(diff_ids=(Digest("sha256:" + "a" * 64),)),
    history=(History(created="2020-01-01T00:00:00Z", created_by="base"),),
)
CLASSES = {"parse": "parseError", "instructions": "instructionsError", "convert": "convertError", "": "none"}


class AnyImage(dict[tuple[str, str], front.ResolvedImage]):
    """Every reference is the stand-in."""

    def get(self, key: Any, default: Any = None) -> Any:
        return front.ResolvedImage(key[0], Digest("sha256:" + "b" * 64), BASE)


KNOWN = AnyImage()


# --- our answer ---------------------------------------------------------------------------------------


def node_json(node: Node) -> dict[str, Any]:
    """A node of the syntax tree."""
    out: dict[str, Any] = {"value": node.value}
    if node.flags:
        out["flags"] = node.flags
    if node.args:
        out["args"] = node.args
    if node.json:
        out["json"] = True
    if node.heredocs:
        out["heredocs"] = [
            {
                "Name": doc.name,
                "FileDescriptor": doc.descriptor,
                "Expand": doc.expand,
                "Chomp": doc.chomp,
                "Content": doc.content,
            }
            for doc in node.heredocs
        ]
    out |= {"start": node.start, "end": node.end, "original": node.original}
    if node.comments:
        out["comments"] = list(node.comments)
    if node.child is not None:
        out["sub"] = [node.child.dump()]
    return out


def mounts_json(texts: tuple[str, ...]) -> list[dict[str, Any]]:
    """The --mounts with nothing expanded; where one is wrong, what is known before expansion."""
    try:
        flags = [parse_mount(text, lambda value: value) for text in texts]
    except Fault:
        flags = [MountFlag(from_=check_mount(text)) for text in texts]
    return [mount_json(flag) for flag in flags]


def mount_json(flag: MountFlag) -> dict[str, Any]:
    return {
        "Type": flag.type, "From": flag.from_, "Source": flag.source, "Target": flag.target,
        "ReadOnly": flag.readonly, "SizeLimit": flag.size, "CacheID": flag.id, "CacheSharing": flag.sharing,
        "Required": flag.required, "Env": flag.env, "Mode": flag.mode, "UID": flag.uid, "GID": flag.gid,
    }  # fmt: skip


def command_line(item: ins.CommandLine, *, empty: Any) -> dict[str, Any]:
    files = [{"Name": f.name, "Data": f.data, "Chomp": f.chomp} for f in item.files]
    return {"CmdLine": list(item.args) or empty, "Files": files or None, "PrependShell": item.shell_form}


def transfer(item: ins.Transfer) -> dict[str, Any]:
    contents = [{"Path": c.path, "Data": c.data, "Expand": c.expand} for c in item.contents]
    out: dict[str, Any] = {
        "DestPath": item.dest, "SourcePaths": list(item.sources) or None, "SourceContents": contents or None,
    }  # fmt: skip
    if isinstance(item, ins.Copy):
        out["From"] = item.from_
    out |= {
        "Chown": item.chown, "Chmod": item.chmod, "Link": item.link, "ExcludePatterns": list(item.exclude) or None,
    }  # fmt: skip
    if isinstance(item, ins.Copy):
        return out | {"Parents": item.parents}
    assert isinstance(item, ins.Add)
    return out | {"KeepGitDir": item.keep_git_dir, "Checksum": item.checksum, "Unpack": item.unpack}


def arg_json(item: ins.Arg) -> dict[str, Any]:
    return {"Args": [{"Key": p.key, "Value": p.value, "DocComment": p.comment} for p in item.pairs]}


def pairs_json(pairs: Iterable[ins.Pair]) -> list[dict[str, Any]]:
    return [{"Key": p.key, "Value": p.value, "NoDelim": p.no_delim} for p in pairs]


def fields(item: ins.Instruction) -> tuple[str, dict[str, Any]]:
    """(BuildKit's type, its fields)."""
    match item:
        case ins.Run():
            return "RunCommand", command_line(item, empty=[]) | {"FlagsUsed": list(item.flags)}
        case ins.Cmd():
            return "CmdCommand", command_line(item, empty=[])
        case ins.Entrypoint():
            return "EntrypointCommand", command_line(item, empty=None)
        case ins.Copy():
            return "CopyCommand", transfer(item)
        case ins.Add():
            return "AddCommand", transfer(item)
        case ins.Env():
            return "EnvCommand", {"Env": pairs_json(item.pairs)}
        case ins.Label():
            return "LabelCommand", {"Labels": pairs_json(item.pairs)}
        case ins.Arg():
            return "ArgCommand", arg_json(item)
        case ins.Expose():
            return "ExposeCommand", {"Ports": list(item.ports)}
        case ins.Volume():
            return "VolumeCommand", {"Volumes": list(item.paths)}
        case ins.Shell():
            return "ShellCommand", {"Shell": list(item.args)}
        case ins.HealthcheckInstruction():
            return "HealthCheckCommand", {"Health": msgspec.to_builtins(item.health)}
    name, key, value = {
        ins.User: ("UserCommand", "User", "user"),
        ins.Workdir: ("WorkdirCommand", "Path", "path"),
        ins.Stopsignal: ("StopSignalCommand", "Signal", "signal"),
        ins.Maintainer: ("MaintainerCommand", "Maintainer", "author"),
        ins.Onbuild: ("OnbuildCommand", "Expression", "expression"),
    }[type(item)]
    return name, {key: getattr(item, value)}


def command_json(item: ins.Instruction) -> dict[str, Any]:
    kind, values = fields(item)
    location = item.location
    out: dict[str, Any] = {
        "fields": values, "loc": [[line, line] for line in range(location.start, location.end + 1)],
        "name": item.name, "type": kind,
    }  # fmt: skip
    if isinstance(item, ins.Run):
        out |= {
            "mounts": mounts_json(item.mounts),
            "network": item.network,
            "security": item.security,
        }
    return out


def stage_json(stage: ins.Stage) -> dict[str, Any]:
    return {
        "base": stage.base_name,
        "commands": [command_json(item) for item in stage.commands] or None,
        "comment": stage.comment,
        "name": stage.stage_name,
        "platform": stage.platform,
    }


def image_json(plan: Plan) -> dict[str, Any]:
    """The image config as the converter leaves it: the base's diff ids, and all of the history.

    What an instruction did has a time only where a global ARG gives SOURCE_DATE_EPOCH one."""
    stage = plan.stages[plan.target]
    base = stage.base
    created = None if plan.epoch is None else f"{datetime.fromtimestamp(plan.epoch, UTC):%Y-%m-%dT%H:%M:%SZ}"
    history = (base.history if base else ()) + tuple(
        History(created=created, created_by=h.created_by, comment=h.comment, empty_layer=h.vertex is None)
        for h in stage.history
    )
    body: dict[str, Any] = msgspec.to_builtins(
        msgspec.structs.replace(stage.image, history=history), enc_hook=str, str_keys=True
    )
    diff_ids = [str(digest) for digest in base.rootfs.diff_ids] if base else []
    body["rootfs"] = {"type": "layers", "diff_ids": diff_ids or None}
    return body


def plain(value: Any) -> Any:
    """As it comes back from JSON, undecodable bytes replaced."""
    if isinstance(value, str):
        return to_utf8(value)
    if isinstance(value, dict):
        return {to_utf8(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def answer(name: str, data: bytes) -> dict[str, Any]:
    """What we say of one Dockerfile, in the shape of expected.jsonl."""
    report = front.lint(data, OPTIONS, KNOWN)
    out: dict[str, Any] = {"file": name}
    message = report.error.message if report.error else ""
    if report.tree is None:
        return out | {"parseError": message}
    tree = report.tree
    out |= {"dump": tree.dump(), "escape": tree.escape, "nodes": [node_json(node) for node in tree.nodes]}
    out["parserWarnings"] = [
        {"line": line, "short": f"Empty continuation line found in: {text}"}
        for line, text in tree.empty_continuations
    ] or None
    out["lint"] = [
        {"detail": w.message, "line": w.location.start if w.location else 0, "rule": w.rule} for w in report.warnings
    ] or None
    syntax = detect_syntax(data.decode("utf-8", "surrogateescape"))
    if syntax is not None:
        out |= {"syntax": syntax[0], "syntaxCmdline": syntax[1]}
    if report.error is not None:
        out["lintBuildError"] = message
    if report.phase == "instructions":
        out |= {"instructionsError": message, "convertError": message}
    if report.dockerfile is not None:
        out["stages"] = [stage_json(stage) for stage in report.dockerfile.stages]
        out["metaArgs"] = [arg_json(arg) for arg in report.dockerfile.meta_args] or None
        try:  # the checks see all stages, a build the needed ones
            out["image"] = image_json(front.lower(report.dockerfile, OPTIONS, KNOWN))
        except DockerfileError as error:
            out["convertError"] = error.message
    result: dict[str, Any] = plain(out)
    return result


# --- comparing ------------------------------------------------------------------------------------------


def klass(row: dict[str, Any]) -> str:
    return next((key for key in ("parseError", "instructionsError", "convertError") if row.get(key)), "none")


def lines(row: dict[str, Any]) -> list[list[Any]]:
    return [[node["value"], node["start"], node["end"]] for node in row.get("nodes") or []]


def checks(row: dict[str, Any]) -> Counter[tuple[str, int]]:
    return Counter((item["rule"], item["line"]) for item in row.get("lint") or [])


def first_difference(ours: Any, theirs: Any, path: str = "") -> str:
    """Where two JSON values part, in words."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted({*ours, *theirs}):
            if ours.get(key) != theirs.get(key):
                return first_difference(ours.get(key), theirs.get(key), f"{path}.{key}")
    if isinstance(ours, list) and isinstance(theirs, list):
        for index, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            if one != other:
                return first_difference(one, other, f"{path}[{index}]")
        return f"{path}: {len(ours)} items, expected {len(theirs)}"
    return f"{path}: {json.dumps(ours)[:MAX_SHOWN]}, expected {json.dumps(theirs)[:MAX_SHOWN]}"


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, str]:
    """{what differs: why}; what doesn't apply to a file counts as agreeing."""
    bad: dict[str, str] = {}
    if klass(ours) != klass(theirs):
        reason = ours.get(klass(ours)) or "no error"
        bad["class"] = f"{klass(ours)} ({reason}), expected {klass(theirs)} ({theirs.get(klass(theirs), 'no error')})"
    if ours.get("dump") != theirs.get("dump"):
        one, other = (str(row.get("dump") or "").split("\n") for row in (ours, theirs))
        bad["dump"] = first_difference(one, other)
    if lines(ours) != lines(theirs):
        bad["lines"] = first_difference(lines(ours), lines(theirs))
    if ours.get("image") != theirs.get("image"):
        bad["image"] = first_difference(ours.get("image"), theirs.get("image"))
    mine, wanted = checks(ours), checks(theirs)
    if mine != wanted:
        bad["lint"] = f"too many {sorted((mine - wanted).elements())}, missing {sorted((wanted - mine).elements())}"
    return bad


# --- reading ----------------------------------------------------------------------------------------------


def corpus(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every file in an archive or a directory."""
    if path.is_dir():
        for file in sorted(item for item in path.rglob("*") if item.is_file()):
            yield file.relative_to(path).as_posix(), file.read_bytes()
        return
    with tarfile.open(path) as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isfile() else None
            if stream is not None:
                yield member.name.removeprefix("./"), stream.read()


def rows(path: Path) -> dict[str, dict[str, Any]]:
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    found = (json.loads(line) for line in data.splitlines() if line.strip())
    return {row["file"]: row for row in found}


def default_folder() -> Path:
    given = os.environ.get("OCIBUILD_CONFORMANCE")
    root = Path(given) if given else Path(__file__).resolve().parents[1].parent / "shared" / "conformance"
    return root / "dockerfiles"


def judge(files: Iterable[tuple[str, bytes]], expected: dict[str, dict[str, Any]]) -> int:
    """Compare everything and print the sums; 0 when each target is met."""
    total, differing = 0, Counter[str]()
    for name, data in files:
        theirs = expected.get(name)
        if theirs is None:
            print(f"{name}: nothing expected of it", file=sys.stderr)
            continue
        total += 1
        for what, why in compare(answer(name, data), theirs).items():
            differing[what] += 1
            print(f"{name}: {what}: {why}")
    met = total > 0
    for what, target in TARGETS.items():
        agree = total - differing[what]
        share = 100 * agree / total if total else 0.0
        met = met and share >= target
        print(f"{what:6} {agree:5} of {total} ({share:.2f} %, target {target} %)")
    return 0 if met else 1


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=default_folder() / "dockerfiles.tar.gz")
    parser.add_argument("--expected", type=Path)
    parser.add_argument("--emit", action="store_true", help="print our own answers")
    parser.add_argument("--only", default="", help="only files whose name contains this")
    asked = parser.parse_args()
    if not asked.corpus.exists():
        print(f"{asked.corpus}: not here; --corpus or $OCIBUILD_CONFORMANCE names it", file=sys.stderr)
        return 2
    files = ((name, data) for name, data in corpus(asked.corpus) if asked.only in name)
    if asked.emit:
        for name, data in files:
            print(json.dumps(answer(name, data), sort_keys=True, ensure_ascii=False))
        return 0
    expected = asked.expected or asked.corpus.parent / "expected.jsonl.gz"
    if not expected.exists():
        print(f"{expected}: not here; --expected names it", file=sys.stderr)
        return 2
    return judge(files, rows(expected))


if __name__ == "__main__":
    sys.exit(main())
