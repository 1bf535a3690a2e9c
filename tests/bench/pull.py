"""A cold pull by a daemon of its own, ready to run: seconds, and processor seconds of all its processes.

    python tests/bench/pull.py IMAGE [DIRECTORY] [rounds]

IMAGE: in a registry nearby (127.0.0.1:5000/big).  DIRECTORY: for the store; a tmpfs shows what the processor does, a disk
what people have.  Wall time means little on a busy machine: compare processor seconds.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
COMMAND = "ocibuildd"


def cpu(pid: int) -> tuple[float, float]:
    """(user, system) seconds of a process and its children, those that ended too."""
    user = system = 0.0
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for one in [pid, *map(int, children)]:
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        own_user, own_system, their_user, their_system = map(int, fields[11:15])
        user += (own_user + their_user) / TICK
        system += (own_system + their_system) / TICK
    return user, system


def pull(image: str, top: Path) -> tuple[float, float, float]:
    """(seconds, user, system) of one pull into an empty store."""
    state, address = top / "state", top / "socket"
    daemon = subprocess.Popen(
        [COMMAND, "--state-dir", state, "--socket", address], stderr=subprocess.DEVNULL
    )
    try:
        while not address.exists():
            time.sleep(0.05)
        time.sleep(1.5)  # imports that wait for idleness
        before, begun = cpu(daemon.pid), time.perf_counter()
        subprocess.run(
            ["ocibuild", "pull", image], check=True, stdout=subprocess.DEVNULL,
            env={**os.environ, "OCIBUILD_HOST": f"unix://{address}"},
        )
        took, after = time.perf_counter() - begun, cpu(daemon.pid)
    finally:
        daemon.terminate()
        daemon.wait()
    return took, after[0] - before[0], after[1] - before[1]


def main(image: str, directory: str = "/var/tmp", rounds: str = "3") -> None:
    rows = []
    for _ in range(int(rounds)):
        top = Path(tempfile.mkdtemp(dir=directory))
        try:
            rows.append(pull(image, top))
        finally:
            # Most of it is owned by subordinate ids.
            command = ["unshare", "--map-root-user", "--map-auto", "rm", "-rf", str(top)]
            if subprocess.run(command, check=False).returncode:
                shutil.rmtree(top, ignore_errors=True)
        print("{:8.2f} s, processor: {:.2f} user, {:.2f} system".format(*rows[-1]))
    wall, user, system = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"medians: {wall:.2f} s, processor: {user + system:.2f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(*sys.argv[1:])
    else:
        print("no image to pull was named: nothing measured")
