"""Builds of many steps, stages and layers: what one more of them costs, at the start and at the end of the scale.

    python tests/bench/wide.py [largest]

For each shape at an eighth, a half and the whole of ``largest`` (500): seconds of a cold and of a cached build, and
processor milliseconds of the daemon for each step.  A cost for each step that grows is a loop within a loop.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from store_size import BUSYBOX, Daemon

LAYERS = 120
"""What Docker's and containers' storage allow at most is 127 or 128 layers."""


def steps(count: int) -> str:
    """One stage, steps that change nothing."""
    return "FROM base\n" + "".join(f"RUN : {number}\n" for number in range(count))


def stages(count: int) -> str:
    """Stages beside each other, and one that takes a file of each."""
    text = "".join(f"FROM base AS s{number}\nRUN echo {number} > /f\n" for number in range(count))
    copies = "".join(f"COPY --from=s{number} /f /f{number % 50}\n" for number in range(count))
    return f"{text}FROM scratch\n{copies}"


def beside(count: int) -> str:
    """Steps that need nothing of each other, 32 at a time at most."""
    text = "".join(f"FROM base AS s{number}\nRUN : {number}\n" for number in range(count))
    mounts = "".join(f"--mount=from=s{number},target=/m{number} " for number in range(min(count, 32)))
    return f"{text}FROM base\nRUN {mounts} :\n"


def layers(count: int) -> str:
    """Layers above each other, and a step on top of them all that changes a file of the lowest."""
    count = min(count, LAYERS)
    return "FROM base\n" + "".join(f"RUN echo {n} > /f{n}\n" for n in range(count)) + "RUN echo x >> /f0\n"


def config(count: int) -> str:
    """Instructions that make no layer."""
    return "FROM base\n" + "".join(f"ENV V{number}={number}\n" for number in range(count)) + "RUN :\n"


SHAPES: dict[str, Callable[[int], str]] = {
    "steps": steps, "stages": stages, "beside": beside, "layers": layers, "config": config
}


def main(largest: int = 500) -> None:
    top = Path(tempfile.mkdtemp(dir="/var/tmp"))
    daemon = Daemon(top)
    try:
        context = top / "context"
        context.mkdir()
        shutil.copy(BUSYBOX, context / "busybox")
        (context / "Dockerfile").write_text("FROM scratch\nCOPY busybox /bin/sh\n")
        daemon("build", "-q", "-t", "base", context)
        print(f"{'':16}{'cold s':>10}{'cpu ms/step':>14}{'cached s':>10}{'cpu ms/step':>14}")
        for name, shape in SHAPES.items():
            for count in (largest // 8, largest // 2, largest):
                count = min(count, LAYERS) if name == "layers" else count
                (context / "Dockerfile").write_text(shape(count))
                cold = timed(daemon, count, "build", "--progress=plain", "--no-cache", context)
                cached = timed(daemon, count, "build", "--progress=plain", context)
                print(f"{name:8}{count:8}{cold}{cached}", flush=True)
    finally:
        daemon.end()
        shutil.rmtree(top, ignore_errors=True)


def timed(daemon: Daemon, count: int, *args: str | Path) -> str:
    before, begun = daemon.cpu(), time.perf_counter()
    daemon(*args)
    took, cpu = time.perf_counter() - begun, daemon.cpu() - before
    return f"{took:10.2f}{cpu / count * 1e3:14.2f}"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
