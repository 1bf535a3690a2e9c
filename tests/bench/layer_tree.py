"""A tree of small files for the benchmarks of layers, and what it costs to do something."""

from __future__ import annotations

import os
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def make(top: Path, files: int = 20_000, size: int = 150_000_000, seed: int = 1) -> Path:
    """``files`` files of about ``size`` bytes of text in all, 15 to a directory; kept when it is there already."""
    done = top / f".made-{files}-{size}"
    if done.exists():
        return top / "tree"
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 9))) for _ in range(2000)]
    text = " ".join(rng.choices(words, k=400_000)).encode()
    average = size // files
    for number in range(files):
        directory = top / "tree" / f"p{number // 150}" / f"d{number // 15}"
        directory.mkdir(parents=True, exist_ok=True)
        length = min(len(text) // 2, int(rng.expovariate(1 / average)))
        start = rng.randrange(len(text) - length)
        path = directory / f"f{number}.js"
        path.write_bytes(text[start : start + length])
        os.utime(path, (1_700_000_000, 1_700_000_000))
    done.touch()
    return top / "tree"


def measure(name: str, work: Callable[[], Any], size: Callable[[Any], int], times: int = 3) -> Any:
    """Print the best of some runs: seconds, MB/s, seconds of CPU (user, system)."""
    best: tuple[float, ...] = (1e9,)
    result = None
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_SELF)
        start = time.perf_counter()
        result = work()
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_SELF)
        best = min(best, (wall, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime))
    rate = size(result) / best[0] / 1e6
    print(f"{name:32} {best[0]:7.3f} s {rate:8.0f} MB/s   user {best[1]:.2f} sys {best[2]:.2f}")
    return result
