"""What a Dockerfile costs before anything runs: milliseconds of the processor's time to parse and lower one.

    python tests/bench/frontend.py [ROUNDS]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from dockerfile_images import Images  # noqa: E402

from ocibuildd import dockerfile as front  # noqa: E402
from ocibuildd.sandbox import seccomp  # noqa: E402

TYPICAL = b"""\
ARG VERSION=1.2
FROM golang:${VERSION} AS builder
WORKDIR /src
COPY go.mod go.sum ./
ENV CGO_ENABLED=0 GOFLAGS="-mod=mod"
RUN --mount=type=cache,target=/root/.cache go mod download
COPY . .
ARG TARGETOS TARGETARCH
RUN make -j4 && \\
    make install
FROM debian:bookworm-slim
LABEL org.opencontainers.image.source="x" a=b
RUN apt-get update && apt-get install -y ca-certificates
ENV PATH=/app/bin:$PATH
WORKDIR /app
COPY --from=builder --chown=1000:1000 /src/out /app/bin
EXPOSE 8080
USER 1000
HEALTHCHECK --interval=5s CMD curl -f localhost
ENTRYPOINT ["/app/bin/server"]
CMD ["--help"]
"""


def stages(count: int) -> bytes:
    names = [b"alpine", *(b"s%d" % n for n in range(count))]
    return b"".join(b"FROM %s AS s%d\nRUN echo %d\n" % (names[n], n, n) for n in range(count))


def milliseconds(data: bytes, rounds: int) -> float:
    best = 1e9
    for _ in range(rounds):
        started = time.process_time()
        front.lower(front.parse(data), front.LowerOptions(), Images({}))
        best = min(best, time.process_time() - started)
    return 1000 * best


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    print(f"a typical file        {milliseconds(TYPICAL, rounds):8.2f} ms")
    for count in (100, 500):
        print(f"{count} stages{'':12}{milliseconds(stages(count), max(3, rounds // 4)):8.2f} ms")
    started = time.process_time()
    seccomp.filter_bytes("x86_64", frozenset({"CAP_CHOWN"}))
    print(f"a step's seccomp filter {1000 * (time.process_time() - started):6.2f} ms, once a set of capabilities")


if __name__ == "__main__":
    main()
