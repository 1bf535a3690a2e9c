"""Coverage-guided fuzzing of the front end: ``python tests/fuzz/dockerfile.py [-max_total_time=60] [corpus]``.

The first byte picks what is fed: the whole front end, the expander or the ignore matcher.  Needs atheris
(``pip install atheris``); arguments are libFuzzer's.
"""

from __future__ import annotations

import sys
import time
from typing import Any

MAX_SECONDS = 2.0


class AnyImage(dict[Any, Any]):
    """Every reference is one plain image."""

    def get(self, key: Any, default: Any = None) -> Any:
        from ocibuildd import dockerfile as front
        from ocibuildd.model.digest import Digest
        from ocibuildd.model.oci import ImageConfig, RootFS

        layer = RootFS(diff_ids=(Digest("sha256:" + "a" * 64),))
        config = ImageConfig(architecture="amd64", os="linux", rootfs=layer)
        return front.ResolvedImage(key[0], Digest("sha256:" + "b" * 64), config)


def feed_front_end(data: bytes) -> None:
    from ocibuildd import dockerfile as front
    from ocibuildd.errors import DockerfileError
    from ocibuildd.model.oci import encode

    options = front.LowerOptions(build_args={"a": "1"})
    try:
        plan = front.lower(front.parse(data), options, AnyImage())
    except DockerfileError:
        return
    for stage in plan.stages:
        encode(stage.image)


def feed_expander(data: bytes) -> None:
    from ocibuildd.dockerfile.expand import Expander
    from ocibuildd.dockerfile.faults import Fault

    word = data.decode("utf-8", "surrogateescape")
    try:
        Expander().expand(word, {"a": "x y", "b": "", "v": "abcab"})
    except Fault:
        return


def feed_patterns(data: bytes) -> None:
    from ocibuildd.model.patterns import BadPattern, Ignore, parse_ignore

    text, _, path = data.decode("utf-8", "surrogateescape").partition("\0")
    try:
        Ignore(parse_ignore(text)).may_contain(path)
    except BadPattern:
        return


FEEDS = (feed_front_end, feed_expander, feed_patterns)


def one_input(data: bytes) -> None:
    """One input: no crash, and no input that takes long."""
    if not data:
        return
    started = time.perf_counter()
    FEEDS[data[0] % len(FEEDS)](data[1:])
    if time.perf_counter() - started > MAX_SECONDS:
        raise RuntimeError(f"{len(data)} bytes took more than {MAX_SECONDS} s")


def main() -> int:
    """Run libFuzzer."""
    try:
        import atheris
    except ImportError:
        print("atheris isn't installed: pip install atheris (the suite's hypothesis tests need nothing)", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["ocibuildd"]):
        import ocibuildd.dockerfile
        import ocibuildd.model.patterns  # noqa: F401
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
