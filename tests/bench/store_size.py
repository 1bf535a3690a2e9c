"""What a store's contents cost its user: the same commands in an empty store and in a full one.

    python tests/bench/store_size.py [records] [images] [rounds]

Two daemons of their own, one over a store with 20,000 records and 2,000 images of ten layers each.  Rounds are
interleaved.  Prints milliseconds (the least, and the median) and processor milliseconds of the daemon a call.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ocibuildd.model.digest import Digest
from ocibuildd.model.oci import (
    MEDIA_CONFIG,
    MEDIA_LAYER_GZIP,
    MEDIA_MANIFEST,
    Descriptor,
    ImageConfig,
    Manifest,
    RootFS,
    encode,
)
from ocibuildd.ports import Record
from ocibuildd.store import Store
from ocibuildd.store.images import Image

TICK = os.sysconf("SC_CLK_TCK")
LAYERS = 10
"""Layers, and records, of each image."""
BUSYBOX = shutil.which("busybox") or "/bin/busybox"


class Daemon:
    """A daemon over a state directory."""

    def __init__(self, top: Path):
        self.top, self.state = top, top / "state"
        address = top / "socket"
        self.env = {**os.environ, "OCIBUILD_HOST": f"unix://{address}"}
        begun = time.perf_counter()
        self.process = subprocess.Popen(
            ["ocibuildd", "--state-dir", self.state, "--socket", address],
            stderr=(top / "log").open("w"), cwd="/",
        )
        while not address.exists():
            if self.process.poll() is not None:
                raise SystemExit((top / "log").read_text())
            time.sleep(0.005)
        self.start = time.perf_counter() - begun

    def __call__(self, *args: str | Path) -> str:
        done = subprocess.run(
            ["ocibuild", *args], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode:
            raise SystemExit(f"{args}: {done.stdout}")
        return done.stdout

    def cpu(self) -> float:
        """Processor seconds of the daemon and its children so far."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        total = 0
        for one in [pid, *map(int, children)]:
            total += sum(map(int, Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[11:15]))
        return total / TICK

    def end(self) -> None:
        """Stop it and remove its state, much of which is owned by subordinate ids."""
        self.process.terminate()
        self.process.wait()
        command = ["unshare", "--map-root-user", "--map-auto", "rm", "-rf", str(self.state)]
        subprocess.run(command, check=False)


def fill(state: Path, records: int, images: int) -> None:
    """Images of ten layers that share their lower half with others; a record for each layer."""
    state.mkdir(mode=0o700, parents=True)
    now = time.time()
    with Store.open(state) as store, store.transaction():
        for number in range(images):
            blobs = [b"layer %d %d" % (number if n >= LAYERS // 2 else number // 20, n) for n in range(LAYERS)]
            digests = store.blobs.put_many(blobs, sync=False)
            chain: tuple[int, ...] = ()
            for blob, digest in zip(blobs, digests, strict=True):
                parent = chain[-1] if chain else 0
                found = store.layers.find(digest, parent)
                layer = found or store.layers.add(
                    parent, diff_id=digest, digest=digest, size=len(blob), media_type=MEDIA_LAYER_GZIP,
                    content=digest.hex, tar_size=len(blob),
                )
                chain = (*chain, layer.id)
            _image(store, number, chain, digests, blobs, now - number)
        for number in range(records):
            store.records.put(_record(number, (number % (images or 1)) + 1, now - number))


def _record(number: int, layer: int, when: float) -> Record:
    return Record(
        key=Digest.of(b"key %d" % number).hex, chain=(layer,), value="", preimage=f"{number} " * 200, cost=1.0,
        created=when, build="b", selector=f"s{number % 500}", op=f"o{number}", identity=f"i{number}",
        description=f"[{number % 9}/9] RUN make {number}", last_used=when,
    )


def _image(
    store: Store, number: int, chain: tuple[int, ...], digests: list[Digest], blobs: list[bytes], when: float
) -> None:
    config = encode(ImageConfig(
        architecture="amd64", os="linux", rootfs=RootFS(diff_ids=tuple(digests)), author=str(number)
    ))
    manifest = encode(Manifest(
        schema_version=2, media_type=MEDIA_MANIFEST,
        config=Descriptor(MEDIA_CONFIG, Digest.of(config), len(config)),
        layers=tuple(
            Descriptor(MEDIA_LAYER_GZIP, digest, len(blob))
            for digest, blob in zip(digests, blobs, strict=True)
        ),
    ))
    store.blobs.put_many([config, manifest], sync=False)
    store.images.put(Image(
        Digest.of(config), Digest.of(manifest), MEDIA_MANIFEST, chain, created=when, size=100,
        platform="linux/amd64", build="b", kind="image" if number % 4 == 0 else "intermediate",
    ))
    if number % 4 == 0:
        store.images.tag(f"docker.io/library/image:{number}", Digest.of(config))


def contexts(top: Path) -> tuple[Path, Path]:
    """20 steps with a COPY of 1,000 files; five steps that run."""
    base, noop, run = top / "base", top / "noop", top / "run"
    for each in (base, noop / "files", run):
        each.mkdir(parents=True)
    shutil.copy(BUSYBOX, base / "busybox")
    (base / "Dockerfile").write_text("FROM scratch\nCOPY busybox /bin/sh\n")
    for number in range(1000):
        (noop / "files" / str(number)).write_text(f"{number}\n")
    steps = "".join(f"RUN : {number}\n" for number in range(18))
    (noop / "Dockerfile").write_text(f"FROM base\nCOPY files /files\n{steps}")
    (run / "Dockerfile").write_text("FROM base\n" + "".join(f"RUN echo {n} > /{n}\n" for n in range(5)))
    return noop, run


def main(records: int = 20_000, images: int = 2_000, rounds: int = 15) -> None:
    top = Path(tempfile.mkdtemp(dir="/var/tmp"))
    daemons: list[Daemon] = []
    try:
        noop, run = contexts(top)
        for name, count in (("empty", 0), ("full", images)):
            begun = time.perf_counter()
            fill(top / name / "state", records if count else 0, count)
            filled = time.perf_counter() - begun
            daemons.append(Daemon(top / name))
            print(f"{name}: filled in {filled:.1f} s, the daemon started in {daemons[-1].start * 1e3:.0f} ms")
        for daemon in daemons:
            daemon("build", "-q", "-t", "base", top / "base")
            daemon("build", "-q", "-t", "noop", noop)
        cases: dict[str, Callable[[Daemon], object]] = {
            "build, all cached": lambda daemon: daemon("build", "-q", "-t", "noop", noop),
            "build, 5 RUN": lambda daemon: daemon("build", "-q", "--no-cache", "-t", "run", run),
            "images": lambda daemon: daemon("images"),
            "images base": lambda daemon: daemon("images", "base"),
            "inspect base": lambda daemon: daemon("inspect", "base"),
            "builds": lambda daemon: daemon("builds"),
            "system df": lambda daemon: daemon("system", "df"),
            "tag": lambda daemon: daemon("tag", "base", "other"),
        }
        print(f"{'ms: least (median) cpu':24}{'empty':>24}{'full':>24}{'ratio':>8}")
        for name, call in cases.items():
            measure(name, call, daemons, rounds)
        measure("system prune -af", lambda daemon: daemon("system", "prune", "-af"), daemons, 1)
    finally:
        for daemon in daemons:
            daemon.end()
        shutil.rmtree(top, ignore_errors=True)


def measure(
    name: str, call: Callable[[Daemon], object], daemons: list[Daemon], rounds: int
) -> None:
    walls: list[list[float]] = [[], []]
    cpus = [0.0, 0.0]
    for _ in range(rounds):
        for place, daemon in enumerate(daemons):
            before, begun = daemon.cpu(), time.perf_counter()
            call(daemon)
            walls[place].append((time.perf_counter() - begun) * 1e3)
            cpus[place] += (daemon.cpu() - before) * 1e3
    texts = [
        f"{min(wall):8.1f} ({statistics.median(wall):.1f}) {cpu / rounds:.1f}"
        for wall, cpu in zip(walls, cpus, strict=True)
    ]
    print(f"{name:24}{texts[0]:>24}{texts[1]:>24}{min(walls[1]) / min(walls[0]):8.2f}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
