"""The event log of a build: what the API streams, the CLI draws and ``inspect`` replays.

Each event is one JSON object on one line: ``{"n": <sequence, from 0>, "t": <seconds since the epoch>,
"type": …}`` and the fields below.  Fields that are empty are left out.

    build.started   id, name, steps (total), dockerfile, arguments (texts of the ARGs before the first FROM)
    build.step      vertex, step, total, stage, text, line      (each instruction, before anything runs)
    vertex.started  vertex, name, inputs
    vertex.log      vertex, stream (1 | 2), data (text; undecodable bytes replaced)
    vertex.status   vertex, id, current, total, unit ("bytes"|""), text   (pull, push, transfer progress)
    vertex.done     vertex, cached (bool), seconds, reason, layer {diff_id, digest, size}, image (id of the
                    intermediate image), usage {…}, error {code, message, hint, details}
    step.done       step, vertex, image, cached   (each instruction, once the image after it is known; steps of a
                    stage come in their order)
    warning         rule, message, line, end_line, url
    message         level (info | warning), text
    build.done      image (config digest), digest (manifest digest), descriptor (of the manifest or index), names,
                    seconds, cached, total, outputs
    build.failed    error {code, message, hint, details}, seconds

``vertex`` is a string that is unique in the build (the decimal index of the vertex, or a name such as
"export" or "push:REF" for work that is no vertex).
"""

from __future__ import annotations

from typing import Any, TypedDict

Event = dict[str, Any]


class LayerInfo(TypedDict):
    """A layer as ``vertex.done`` tells of it; sizes in bytes."""

    diff_id: str
    digest: str
    size: int


TERMINAL = frozenset({"build.done", "build.failed"})
