"""Builds a set of cases through a daemon of its own and compares trees and configs with what BuildKit made.

    python conformance/builds.py [--cases DIR] [--only SLUG] [--verbose]

DIR holds ``cases.json``, ``contexts.tar.gz`` and ``goldens/`` (default: $OCIBUILD_CONFORMANCE/builds, else
``../shared/conformance/builds`` beside the checkout).  A case agrees when it fails where BuildKit fails, or
when the flattened tree of the layers that it added and the image config equal the golden; times of what the
build itself made are not compared.  Base images are stand-ins made on the spot.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Tree = dict[str, dict[str, Any]]
COMMENT = "buildkit.dockerfile.v0"
PATH_ENV = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BASE_TIME = 1577836800
"""The mtime of everything in the stand-ins of the goldens."""
CLOCK_SLACK = 6 * 3600
"""Seconds: a golden's time within this of its newest entry was made by the build that made the golden."""


class Daemon:
    """A private daemon and the CLI that talks to it."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="ocibuildd-conformance-"))
        self.env = {
            **os.environ,
            "OCIBUILD_HOST": f"unix://{self.root}/d.sock",
            "HOME": str(self.root),
        }
        log = (self.root / "log").open("wb")
        program = shutil.which("ocibuildd") or str(Path(sys.executable).parent / "ocibuildd")
        self.cli = str(Path(program).parent / "ocibuild")
        self.process = subprocess.Popen(
            [
                program,
                "--state-dir",
                str(self.root / "state"),
                "--socket",
                str(self.root / "d.sock"),
            ],
            env=self.env,
            stdout=log,
            stderr=log,
        )
        for _ in range(200):
            if self("version").returncode == 0:
                return
            time.sleep(0.1)
        raise SystemExit(f"the daemon does not answer: {(self.root / 'log').read_text()}")

    def __call__(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.cli, *args],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        shutil.rmtree(self.root, ignore_errors=True)
        if self.root.exists():
            subprocess.run(
                ["unshare", "--map-root-user", "--map-auto", "rm", "-rf", str(self.root)],
                check=False,
            )


def busybox(path: Path, *, os_release: bool) -> Path:
    """A root file system of Debian's static busybox; ``os_release`` for what stands in for Alpine."""
    binary = shutil.which("busybox")
    if not binary:
        raise SystemExit("busybox-static is not installed")
    with tarfile.open(path, "w") as archive:

        def add(name: str, kind: bytes, mode: int, data: bytes = b"", link: str = "") -> None:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.size, info.linkname = kind, mode, len(data), link
            info.mtime = BASE_TIME
            archive.addfile(info, io.BytesIO(data))

        for name, mode in (
            ("bin", 0o755),
            ("etc", 0o755),
            ("home", 0o755),
            ("root", 0o700),
            ("tmp", 0o1777),
            ("usr", 0o755),
            ("usr/bin", 0o755),
            ("var", 0o755),
            ("dev", 0o755),
            ("proc", 0o755),
            ("sys", 0o755),
        ):
            add(name, tarfile.DIRTYPE, mode)
        add("bin/busybox", tarfile.REGTYPE, 0o755, Path(binary).read_bytes())
        for applet in subprocess.run(
            [binary, "--list"], capture_output=True, text=True, check=True
        ).stdout.split():
            if applet != "busybox":
                add(f"bin/{applet}", tarfile.SYMTYPE, 0o777, link="busybox")
        add(
            "etc/passwd",
            tarfile.REGTYPE,
            0o644,
            b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
        )
        add("etc/group", tarfile.REGTYPE, 0o644, b"root:x:0:\nnobody:x:65534:\n")
        if os_release:
            add("etc/os-release", tarfile.REGTYPE, 0o644, b"ID=alpine\n")
    return path


def import_bases(daemon: Daemon, cases: list[dict[str, Any]], scratch: Path) -> None:
    """Tag a stand-in with every base name that the cases ask for."""
    made: dict[str, Path | None] = {}

    def base(kind: str) -> Path | None:
        if kind not in made:
            path = scratch / f"{kind}.tar"
            if kind == "debian":
                done = subprocess.run(
                    ["mmdebstrap", "--quiet", "--variant=minbase", "bookworm", str(path)],
                    check=False,
                )
                made[kind] = path if done.returncode == 0 else None
            else:
                made[kind] = busybox(path, os_release=kind == "alpine")
        return made[kind]

    wanted = {
        name: kind.partition("(")[0]
        for case in cases
        for name, kind in case["localStandIns"].items()
    }
    for name, kind in sorted(wanted.items()):
        path = base(kind) if kind in {"busybox", "alpine", "debian"} and "@" not in name else None
        if path is None:
            continue
        command = {"busybox": '["sh"]', "alpine": '["/bin/sh"]', "debian": '["bash"]'}[kind]
        done = daemon(
            "import", "--change", f"CMD {command}", "--change", f"ENV {PATH_ENV}", str(path), name
        )
        if done.returncode:
            raise SystemExit(f"import of {name}: {done.stderr}")
        if kind == "debian":
            (scratch / "centos").mkdir(exist_ok=True)
            (scratch / "centos" / "Dockerfile").write_text(
                f"FROM {name}\nRUN ln -sf bash /bin/sh && mkdir -p /usr/local/tmp\n"
            )
            done = daemon("build", "-q", "-t", name, str(scratch / "centos"))
            if done.returncode:
                raise SystemExit(f"base of {name}: {done.stderr}")


def flatten(layers: list[list[dict[str, Any]]]) -> Tree:
    """Entries of layers, lowest first, as one tree; whiteouts of what is below stay, as they say something."""
    tree: Tree = {}
    for entries in layers:
        for entry in entries:
            name = entry["name"]
            parent, _, leaf = name.rpartition("/")
            if leaf == ".wh..wh..opq":
                for path in [p for p in tree if p.startswith(parent + "/")]:
                    del tree[path]
            elif leaf.startswith(".wh."):
                gone = f"{parent}/{leaf[4:]}".lstrip("/")
                below = [p for p in tree if p == gone or p.startswith(gone + "/")]
                for path in below:
                    del tree[path]
                tree[name] = {"type": "whiteout"}
            else:
                tree.pop(f"{parent}/.wh.{leaf}".lstrip("/"), None)
                tree[name] = entry
    return tree


def read_layer(stream: io.BufferedIOBase) -> Iterator[dict[str, Any]]:
    """The entries of a layer in the shape of the goldens."""
    with tarfile.open(fileobj=stream, mode="r:*", errorlevel=2) as archive:
        for info in archive:
            entry: dict[str, Any] = {
                "name": info.name.rstrip("/"),
                "type": info.type.decode(),
                "mode": oct(info.mode),
                "uid": info.uid,
                "gid": info.gid,
                "mtime": int(info.mtime),
            }
            if info.linkname:
                entry["link"] = info.linkname
            if info.isreg():
                data = archive.extractfile(info)
                assert data is not None
                body = data.read()
                entry |= {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()[:32]}
            yield entry


def load(path: Path, skip_layers: int) -> tuple[dict[str, Any], Tree]:
    """Config and flattened tree (without the base's layers) of an OCI layout in a tar."""
    with tarfile.open(path) as archive:

        def blob(digest: str) -> bytes:
            member = archive.extractfile("blobs/" + digest.replace(":", "/"))
            assert member is not None
            return member.read()

        index = archive.extractfile("index.json")
        assert index is not None
        manifest = json.loads(blob(json.load(index)["manifests"][0]["digest"]))
        config = json.loads(blob(manifest["config"]["digest"]))
        layers = [
            list(read_layer(io.BytesIO(blob(layer["digest"]))))
            for layer in manifest["layers"][skip_layers:]
        ]
    return config, flatten(layers)


def _item(history: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in history.items() if key != "created"}


def compare_config(golden: dict[str, Any], ours: dict[str, Any]) -> Iterator[str]:
    """What differs between two image configs; the base's own history and all times aside."""

    wanted = [_item(h) for h in golden.get("history", []) if h.get("comment") == COMMENT]
    found = [_item(h) for h in ours.get("history", [])][-len(wanted) :] if wanted else []
    yield from (f"history: {a} != {b}" for a, b in zip(wanted, found, strict=False) if a != b)
    if len(wanted) != len(found):
        yield f"history: {len(wanted)} items, ours {len(found)}"
    for key in ("architecture", "os", "config"):
        if golden.get(key) != ours.get(key):
            yield f"{key}: {golden.get(key)} != {ours.get(key)}"


def compare_tree(golden: Tree, ours: Tree, newest: int) -> Iterator[str]:
    """What differs between two trees."""
    for name in sorted(golden.keys() | ours.keys()):
        a, b = golden.get(name), ours.get(name)
        if a is None or b is None:
            yield f"{name}: {'only ours' if a is None else 'missing'}"
            continue
        for key in sorted(a.keys() | b.keys()):
            if key == "mtime" and a["mtime"] > newest - CLOCK_SLACK:
                continue
            if key == "mtime" and a.get("type") == "2":
                continue
            if a.get(key) != b.get(key):
                yield f"{name}: {key} {a.get(key)} != {b.get(key)}"


def judge(daemon: Daemon, case: dict[str, Any], root: Path, scratch: Path) -> list[str]:
    """Build one case; what is wrong with it, empty when it agrees."""
    context = scratch / "contexts" / case["contextDir"]
    output = scratch / "out.tar"
    output.unlink(missing_ok=True)
    args = [f"--build-arg={key}={value}" for key, value in case["args"].items()]
    done = daemon(
        "build",
        "--no-cache",
        "-f",
        str(context / case["dockerfile"]),
        "-o",
        f"type=oci,dest={output}",
        *args,
        str(context),
    )
    if case["expect"] == "fail":
        return [] if done.returncode else ["succeeds, BuildKit says: " + str(case["error"])]
    if done.returncode:
        return [f"fails: {done.stderr.strip()[-400:]}"]
    golden = json.loads((root / case["golden"]).read_text())
    base = sum(1 for layer in golden["layers"] if layer.get("base"))
    config, tree = load(output, base)
    layers = [layer["entries"] for layer in golden["layers"] if not layer.get("base")]
    newest = max((e["mtime"] for layer in layers for e in layer), default=0)
    return [*compare_config(golden["config"], config), *compare_tree(flatten(layers), tree, newest)]


def default_cases() -> Path:
    """Where the open data is, if it is anywhere."""
    base = os.environ.get("OCIBUILD_CONFORMANCE") or str(
        Path(__file__).resolve().parents[2] / "shared" / "conformance"
    )
    return Path(base) / "builds"


def main() -> int:
    """Exit status: 0 when every case agrees."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, default=default_cases())
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    if not (options.cases / "cases.json").exists():
        print(f"no cases at {options.cases}")
        return 2
    cases = json.loads((options.cases / "cases.json").read_text())
    cases = [
        case
        for case in cases
        if not options.only or any(word in case["slug"] for word in options.only)
    ]
    daemon = Daemon()
    scratch = daemon.root / "scratch"
    (scratch / "contexts").mkdir(parents=True)
    wrong = 0
    try:
        subprocess.run(
            [
                "tar",
                "-xzf",
                str(options.cases / "contexts.tar.gz"),
                "-C",
                str(scratch / "contexts"),
                "--xattrs",
                "--xattrs-include=user.*",
            ],
            check=True,
        )
        import_bases(daemon, cases, scratch)
        for case in cases:
            problems = judge(daemon, case, options.cases, scratch)
            wrong += bool(problems)
            if problems or options.verbose:
                print(
                    f"{'differs' if problems else 'agrees '} {case['slug']}",
                    *problems[: 99 if options.verbose else 6],
                    sep="\n    ",
                )
    finally:
        daemon.close()
    print(f"{len(cases) - wrong} of {len(cases)} agree")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
