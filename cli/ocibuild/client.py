"""The library: everything that the daemon offers, as plain calls.

    with Client() as client:
        result = client.build("./app", tags=["app:1"], on_event=print)
        client.push("registry.example/app:1")

A Client holds one connection and is for one thread; make another one for another thread.
Errors are ``ApiError`` (the daemon said no), ``ConnectionFailed`` or ``ClientError``.
"""

from __future__ import annotations

from .errors import ApiError, ClientError, ConnectionFailed
from .http import Connection, Response, query, quote
from .jsonlite import dumps, loads
from .start import connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any, Self

    from .types import (
        Auth,
        Build,
        BuildResult,
        Change,
        Event,
        HistoryItem,
        Image,
        Pruned,
    )

JSON = {"Content-Type": "application/json"}
TAR = {"Content-Type": "application/x-tar"}
NDJSON = "application/x-ndjson"


class Client:
    """A client of the daemon at ``host`` (``unix:///path``; default: $OCIBUILD_HOST, or the user's own
    daemon, which is started where it doesn't run unless ``start`` is False)."""

    def __init__(self, host: str | None = None, *, start: bool = True):
        self.host = host
        self._start = start
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- requests ---------------------------------------------------------------------------

    def connection(self) -> Connection:
        """The connection, made where there is none."""
        if self._connection is None:
            self._connection = connect(self.host, start=self._start)
        return self._connection

    def send(
        self,
        method: str,
        target: str,
        body: object = None,
        *,
        data: bytes | Iterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Response:
        """A request with a JSON body, or with ``data``; raises ApiError for an error's answer.

        The answer's body must be read before the next request."""
        sent: bytes | Iterable[bytes] = b""
        if data is not None:
            sent = data
        elif body is not None:
            sent, headers = dumps(body).encode(), {**JSON, **(headers or {})}
        reused = self._connection is not None
        try:
            response = self.connection().request(method, target, headers, sent)
        except ConnectionFailed:
            self.close()
            if not reused or not isinstance(sent, bytes):
                raise
            # The daemon closes connections that were idle for long; nothing of the answer had come.
            response = self.connection().request(method, target, headers, sent)
        if response.status >= 400:
            raise self._error(response)
        return response

    def _error(self, response: Response) -> ApiError:
        data = response.read()
        self.close()
        try:
            body = loads(data)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            text = data.decode("utf-8", "replace").strip()[:500] or response.reason
            body = {"code": "http", "message": f"HTTP {response.status}: {text}"}
        return ApiError(body, response.status)

    def call(self, method: str, target: str, body: object = None) -> Any:
        """A request whose answer is one JSON value."""
        return self.send(method, target, body).json()

    def stream(
        self, method: str, target: str, body: object = None, *,
        data: bytes | Iterable[bytes] | None = None, headers: dict[str, str] | None = None,
        tick: float | None = None,
    ) -> Iterator[Event]:
        """A request whose answer is one JSON object a line; an ``error`` event is raised as ApiError.

        With ``tick``, an empty event each time so many seconds pass without any."""
        response = self.send(method, target, body, data=data, headers=headers)
        try:
            for line in response.lines(tick):
                event = loads(line) if line else {}
                if event.get("type") == "error":
                    raise ApiError(event.get("error") or {}, response.status)
                yield event
        except BaseException:
            self.close()
            raise
        response.connection.socket.settimeout(None)

    # --- the daemon -------------------------------------------------------------------------

    def version(self) -> dict[str, Any]:
        found: dict[str, Any] = self.call("GET", "/v1/version")
        return found

    def info(self) -> dict[str, Any]:
        found: dict[str, Any] = self.call("GET", "/v1/info")
        return found

    def doctor(self) -> list[dict[str, str]]:
        """What the host has and lacks: ``name, level, found, cost, fix`` each."""
        found: list[dict[str, str]] = self.call("GET", "/v1/doctor")["requirements"]
        return found

    def df(self) -> dict[str, Any]:
        """Disk usage: images, layers, records, cache mounts."""
        found: dict[str, Any] = self.call("GET", "/v1/df")
        return found

    # --- builds -----------------------------------------------------------------------------

    def build(
        self,
        context: str = ".",
        *,
        tags: Sequence[str] = (),
        dockerfile: str = "",
        build_args: Mapping[str, str | None] | None = None,
        target: str = "",
        labels: Mapping[str, str] | None = None,
        platforms: Sequence[str] = (),
        no_cache: bool = False,
        pull: bool = False,
        push: bool = False,
        network: str = "",
        on_event: Callable[[Event], object] | None = None,
        **more: Any,
    ) -> BuildResult:
        """Build ``context``: a directory, or a git or HTTP URL.

        ``more`` are further fields of the request (see the OpenAPI document).  ``on_event`` sees
        every event as it happens.  Raises ApiError when the build fails."""
        from .context import resolve

        request: dict[str, Any] = {
            "context": resolve(context), "dockerfile": dockerfile, "tags": list(tags), "target": target,
            "build_args": dict(build_args or {}), "labels": dict(labels or {}), "no_cache": no_cache,
            "platforms": list(platforms), "pull": pull, "push": push, "network": network, **more,
        }
        if "auth" not in request:
            from .credentials import all_credentials

            request["auth"] = all_credentials()
        for event in self.build_events(request):
            if on_event is not None:
                on_event(event)
            if event.get("type") == "build.failed":
                raise ApiError(event.get("error") or {})
            if event.get("type") == "build.done":
                result: BuildResult = event  # type: ignore[assignment]
                return result
        raise ConnectionFailed("the daemon went away before the build ended")

    def build_events(
        self, request: Mapping[str, Any], *, tick: float | None = None
    ) -> Iterator[Event]:
        """Start a build and follow it to its end; leaving the iterator early cancels the build."""
        return self.stream("POST", "/v1/builds?follow=1", request, tick=tick)

    def builds(self) -> list[Build]:
        found: list[Build] = self.call("GET", "/v1/builds")["builds"]
        return found

    def build_info(self, build: str = "") -> Build:
        """A build by its id or a prefix of it; the newest by default."""
        found: Build = self.call("GET", f"/v1/builds/{quote(build or 'latest')}")
        return found

    def events(self, build: str, since: int = 0, *, follow: bool = True) -> Iterator[Event]:
        """A build's events from number ``since`` on."""
        parameters = query([("from", since or None), ("follow", follow)])
        return self.stream("GET", f"/v1/builds/{quote(build or 'latest')}/events{parameters}")

    def cancel(self, build: str) -> None:
        self.call("POST", f"/v1/builds/{quote(build)}/cancel")

    def explain(self, build: str = "", step: str = "") -> list[dict[str, Any]]:
        """Why each step of a build ran, or what it was taken from."""
        target = f"/v1/builds/{quote(build or 'latest')}/explain{query([('step', step)])}"
        found: list[dict[str, Any]] = self.call("GET", target)["steps"]
        return found

    def upload(self, data: bytes | Iterable[bytes]) -> str:
        """Send a context as a tar; its id for ``{"kind": "upload", "id": …}``."""
        answer = self.send("POST", "/v1/uploads", data=data, headers=TAR).json()
        return str(answer["id"])

    # --- images -----------------------------------------------------------------------------

    def images(
        self, *, all: bool = False, filters: Sequence[str] = ()  # noqa: A002 - docker's word
    ) -> list[Image]:
        """Images; with ``all`` the intermediate ones too.  filters: ``reference=…``, ``label=…``,
        ``dangling=true``, ``before=…``, ``since=…``, ``until=…``."""
        target = "/v1/images" + query([("all", all), *(("filter", item) for item in filters)])
        found: list[Image] = self.call("GET", target)["images"]
        return found

    def inspect(self, name: str, platform: str = "") -> dict[str, Any]:
        """An image as ``docker image inspect`` shows it."""
        target = "/v1/images/inspect" + query([("name", name), ("platform", platform)])
        found: dict[str, Any] = self.call("GET", target)
        return found

    def history(self, name: str) -> list[HistoryItem]:
        target = "/v1/images/history" + query([("name", name)])
        found: list[HistoryItem] = self.call("GET", target)["history"]
        return found

    def tag(self, source: str, target: str) -> None:
        self.call("POST", "/v1/images/tag", {"source": source, "target": target})

    def remove(
        self, name: str, *, force: bool = False, prune: bool = True
    ) -> list[dict[str, str]]:
        """Remove a name, and the image when it was its last: [{"untagged": …} | {"deleted": …}]."""
        target = "/v1/images" + query([("name", name), ("force", force), ("noprune", not prune)])
        found: list[dict[str, str]] = self.call("DELETE", target)["removed"]
        return found

    def diff(self, first: str, second: str) -> list[Change]:
        """Files that differ between two images."""
        target = "/v1/images/diff" + query([("a", first), ("b", second)])
        found: list[Change] = self.call("GET", target)["changes"]
        return found

    def pull(
        self, reference: str, *, platform: str = "", auth: Auth | None = None,
        all_tags: bool = False, on_event: Callable[[Event], object] | None = None,
    ) -> Event:
        """Pull an image; the last event says ``image``, ``digest`` and whether it is ``new``."""
        body = {"reference": reference, "platform": platform, "all_tags": all_tags}
        return self._transfer("/v1/images/pull", body, reference, auth, on_event)

    def push(
        self, reference: str, *, auth: Auth | None = None, all_tags: bool = False,
        platform: str = "", on_event: Callable[[Event], object] | None = None,
    ) -> Event:
        """Push an image; the last event says ``digest`` and ``size`` of the manifest."""
        body = {"reference": reference, "platform": platform, "all_tags": all_tags}
        return self._transfer("/v1/images/push", body, reference, auth, on_event)

    def registry_tags(self, repository: str, *, auth: Auth | None = None) -> list[str]:
        """The tags that a repository has in its registry."""
        body = with_auth({"reference": repository}, repository, auth)
        found: list[str] = self.call("POST", "/v1/registry/tags", body)["tags"]
        return found

    def registry_delete(
        self, reference: str, *, manifest: bool = False, auth: Auth | None = None
    ) -> str:
        """Delete a tag, or a manifest by its digest, in its registry; what was deleted.

        manifest: what the tag names, and with it every tag that names it."""
        body = with_auth({"reference": reference, "manifest": manifest}, reference, auth)
        return str(self.call("POST", "/v1/registry/delete", body)["deleted"])

    def _transfer(
        self, target: str, body: dict[str, Any], reference: str, auth: Auth | None,
        on_event: Callable[[Event], object] | None,
    ) -> Event:
        last: Event = {}
        for event in self.stream("POST", target, with_auth(body, reference, auth)):
            last = event
            if on_event is not None:
                on_event(event)
        if last.get("type") != "done":
            raise ConnectionFailed("the daemon went away in the middle of the transfer")
        return last

    def save(
        self, names: Sequence[str], format: str = "docker", platform: str = ""  # noqa: A002
    ) -> Iterator[bytes]:
        """Images as a tar: ``docker`` (docker load reads it) or ``oci`` (an OCI layout)."""
        parameters = [("name", name) for name in names]
        target = query([*parameters, ("format", format), ("platform", platform)])
        return iter(self.send("GET", f"/v1/images/save{target}"))

    def load(self, data: bytes | Iterable[bytes]) -> list[dict[str, Any]]:
        """Load a tar that ``save`` or docker made: [{"name": …, "image": …}]."""
        answer = self.send("POST", "/v1/images/load", data=data, headers=TAR).json()
        found: list[dict[str, Any]] = answer["loaded"]
        return found

    def import_image(
        self, data: bytes | Iterable[bytes], name: str = "", *, changes: Sequence[str] = (),
        message: str = "", platform: str = "",
    ) -> str:
        """A root file system's tar as an image; its id."""
        target = "/v1/images/import" + query([
            ("name", name), *(("change", change) for change in changes), ("message", message),
            ("platform", platform),
        ])
        return str(self.send("POST", target, data=data, headers=TAR).json()["image"])

    def login(self, registry: str, auth: Auth) -> dict[str, Any]:
        """Check credentials against a registry; nothing is stored."""
        body = {"registry": registry, "auth": auth}
        found: dict[str, Any] = self.call("POST", "/v1/login", body)
        return found

    # --- space ------------------------------------------------------------------------------

    def prune(
        self, what: str = "system", *, all: bool = False, filters: Sequence[str] = (),  # noqa: A002
        keep_storage: int = 0, dry_run: bool = False,
    ) -> Pruned:
        """Remove what nobody needs.  what: images (dangling ones, or all without a name that no
        build needs), builds (cache records) or system (both)."""
        body = {
            "what": what, "all": all, "filters": list(filters), "keep_storage": keep_storage,
            "dry_run": dry_run,
        }
        found: Pruned = self.call("POST", "/v1/prune", body)
        return found


def with_auth(body: dict[str, Any], reference: str, auth: Auth | None) -> dict[str, Any]:
    """A request's body with credentials for the registry of a reference: these, or the user's own."""
    if auth is None:
        from .credentials import credentials_for

        auth = credentials_for(reference)
    return {**body, "auth": auth} if auth else body


__all__ = ["Client", "ClientError"]
