"""GET /events: what happened to images, the last of it kept in memory."""

from __future__ import annotations

import asyncio
import fnmatch
import re
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from ...model.units import parse_duration
from .protocol import ApiError, JsonStream, filters

KEPT = 1024
"""Events that a late ``--since`` can still see."""
MAX_FOLLOWERS = 64
KNOWN = frozenset(
    {"type", "event", "image", "label", "container", "network", "volume", "daemon", "scope",
     "plugin", "node", "service", "secret", "config"}
)  # fmt: skip


def timestamp(text: str, now: float) -> float:
    """A Docker time: seconds since the epoch (with a fraction), RFC 3339, or a duration before now.

    Raises ApiError."""
    if re.fullmatch(r"-?\d+(\.\d+)?", text, re.ASCII):
        return float(text)
    try:
        return now - parse_duration(text)
    except ValueError:
        pass
    from datetime import UTC, datetime

    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ApiError(400, f'parsing time "{text}": expected seconds, RFC 3339 or a duration') from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def matches(event: Mapping[str, Any], wanted: Mapping[str, list[str]]) -> bool:
    """Whether an event passes the filters: all of the keys, any of a key's values."""
    attributes = event["Actor"]["Attributes"]

    def label(text: str) -> bool:
        key, equals, value = text.partition("=")
        return key in attributes and (not equals or attributes[key] == value)

    tests: dict[str, Any] = {
        "type": lambda v: event["Type"] == v,
        "event": lambda v: event["Action"] == v,
        "scope": lambda v: v == "local",
        "label": label,
        "image": lambda v: event["Type"] == "image"
        and (event["Actor"]["ID"].startswith((v, f"sha256:{v}")) or fnmatch.fnmatch(attributes.get("name", ""), v)
             or attributes.get("name", "").rpartition(":")[0] == v),
    }
    return all(
        any(tests[key](value) for value in values) if key in tests else False
        for key, values in wanted.items()
    )


class Events:
    """The engine's event log.  Use from the loop's thread."""

    def __init__(self) -> None:
        self._past: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._followers: set[asyncio.Queue[dict[str, Any]]] = set()

    def image(self, action: str, image: str, name: str = "", labels: Mapping[str, str] | None = None) -> None:
        """Something happened to an image: tag, untag, delete, pull, push, import, load, save."""
        attributes = {**(labels or {}), "name": name or image}
        self._add({"status": action, "id": image}, "image", action, image, attributes)

    def prune(self, kind: str, reclaimed: int) -> None:
        """What is unused was removed.  kind: "image" or "builder"; reclaimed: bytes."""
        self._add({"status": "prune"} if kind == "image" else {}, kind, "prune", "", {"reclaimed": str(reclaimed)})

    def _add(
        self, legacy: Mapping[str, str], kind: str, action: str, actor: str, attributes: Mapping[str, str]
    ) -> None:
        now = time.time_ns()
        event = {
            **legacy, "Type": kind, "Action": action, "Actor": {"ID": actor, "Attributes": dict(attributes)},
            "scope": "local", "time": now // 10**9, "timeNano": now,
        }
        self._past.append(event)
        for queue in self._followers:
            if queue.qsize() < KEPT:
                queue.put_nowait(event)

    async def get(self, request: web.Request) -> web.StreamResponse:
        """GET /events?since=&until=&filters="""
        now = time.time()
        wanted = filters(request.query, KNOWN)
        since, until = request.query.get("since"), request.query.get("until")
        start = timestamp(since, now) if since else None
        end = timestamp(until, now) if until else None
        if start is not None and end is not None and start > end:
            raise ApiError(400, f"`since` time ({since}) cannot be after `until` time ({until})")
        if len(self._followers) >= MAX_FOLLOWERS:
            raise ApiError(503, f"more than {MAX_FOLLOWERS} clients follow events already")
        stream = JsonStream(request)
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._followers.add(queue)
        try:
            past = list(self._past) if start is not None else []
            await stream.send(
                *(e for e in past if e["timeNano"] / 1e9 >= (start or 0)
                  and (end is None or e["timeNano"] / 1e9 <= end) and matches(e, wanted))
            )
            await stream.begin()
            while end is None or time.time() < end:
                left = None if end is None else max(end - time.time(), 0)
                try:
                    event = await asyncio.wait_for(queue.get(), left)
                except TimeoutError:
                    break
                if matches(event, wanted):
                    await stream.send(event)
        finally:
            self._followers.discard(queue)
        return await stream.end()
