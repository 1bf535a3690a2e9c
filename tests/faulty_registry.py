"""A registry that misbehaves as it is told to, in memory, and what can go wrong with one answer."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from ocibuildd.model.digest import Digest
from ocibuildd.model.oci import (
    MEDIA_CONFIG,
    MEDIA_INDEX,
    MEDIA_LAYER_GZIP,
    MEDIA_MANIFEST,
    Descriptor,
    Manifest,
    encode,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Fault = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]


@dataclass
class Rule:
    """``fault`` meets the first ``times`` requests whose "METHOD path" matches ``pattern``."""

    pattern: re.Pattern[str]
    fault: Fault
    times: int


@dataclass
class FaultyRegistry:
    """An honest registry until ``break_`` tells it otherwise.  ``seen``: all requests, with their headers."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[bytes, str]] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    auth: str = ""
    password: str = "secret"
    lifetime: int = 300
    port: int = 0
    mounts: bool = True
    issued: int = 0
    referrers: bool = False
    """The referrers API is there (a page of two entries)."""

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def break_(self, pattern: str, fault: Fault, times: int = 1) -> None:
        self.rules.append(Rule(re.compile(pattern), fault, times))

    def methods(self, pattern: str = "") -> list[str]:
        """ "METHOD path" of what was asked, the look for TLS aside."""
        return [f"{m} {p}" for m, p, _ in self.seen if re.search(pattern, f"{m} {p}")]

    # --- content --------------------------------------------------------------------------------

    def add_blob(self, data: bytes) -> Descriptor:
        digest = Digest.of(data)
        self.blobs[digest] = data
        return Descriptor(MEDIA_LAYER_GZIP, digest, len(data))

    def add_manifest(self, repo: str, ref: str, data: bytes, kind: str = MEDIA_MANIFEST) -> Digest:
        digest = Digest.of(data)
        for name in (ref, str(digest)):
            self.manifests[repo, name] = (data, kind)
        return digest

    def add_image(
        self, repo: str = "app", ref: str = "v1", layer: bytes = b"layer" * 1000
    ) -> bytes:
        config = b'{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[]}}'
        self.blobs[Digest.of(config)] = config
        data = encode(
            Manifest(
                media_type=MEDIA_MANIFEST,
                layers=(self.add_blob(layer),),
                config=Descriptor(MEDIA_CONFIG, Digest.of(config), len(config)),
            )
        )
        self.add_manifest(repo, ref, data)
        return data

    # --- serving --------------------------------------------------------------------------------

    def application(self) -> web.Application:
        @web.middleware
        async def meddle(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._middleware(request, handler)

        app = web.Application(client_max_size=1 << 30, middlewares=[meddle])
        app.router.add_route("*", "/token", self._token)
        app.router.add_route("*", "/v2/", self._ping)
        app.router.add_route("*", "/v2/{repo:.+}/manifests/{ref}", self._manifest)
        app.router.add_route("*", "/v2/{repo:.+}/blobs/uploads/", self._start)
        app.router.add_route("*", "/v2/{repo:.+}/blobs/uploads/{id}", self._upload)
        app.router.add_route("*", "/v2/{repo:.+}/blobs/{digest}", self._blob)
        app.router.add_route("*", "/v2/{repo:.+}/tags/list", self._tags)
        app.router.add_route("*", "/v2/{repo:.+}/referrers/{digest}", self._referrers)
        return app

    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.seen.append((request.method, request.path_qs, dict(request.headers)))
        for rule in self.rules:
            if rule.times and rule.pattern.search(f"{request.method} {request.path}"):
                rule.times -= 1
                return await rule.fault(request, handler)
        return self._refused(request) or await handler(request)

    def _refused(self, request: web.Request) -> web.Response | None:
        if not self.auth or request.path == "/token":
            return None
        given = request.headers.get("Authorization", "")
        wanted = "Basic " + base64.b64encode(f"user:{self.password}".encode()).decode()
        if self.auth == "basic":
            good, challenge = given == wanted, 'Basic realm="here"'
        else:
            good = given.removeprefix("Bearer ") in self.tokens
            challenge = (
                f'Bearer realm="http://{self.host}/token",service="test",scope="repository:x:pull"'
            )
        if good:
            return None
        return web.json_response(
            {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]},
            status=401,
            headers={"WWW-Authenticate": challenge},
        )

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        wanted = "Basic " + base64.b64encode(f"user:{self.password}".encode()).decode()
        if (
            request.headers.get("Authorization") != wanted
            and form.get("refresh_token") != "identity"
        ):
            return web.json_response({"details": "incorrect username or password"}, status=401)
        self.issued += 1
        self.tokens.add(f"token{self.issued}")
        return web.json_response({"token": f"token{self.issued}", "expires_in": self.lifetime})

    async def _ping(self, request: web.Request) -> web.Response:
        return web.json_response({})

    async def _manifest(self, request: web.Request) -> web.Response:
        key = request.match_info["repo"], request.match_info["ref"]
        if request.method == "PUT":
            data = await request.read()
            digest = self.add_manifest(*key, data, request.headers["Content-Type"])
            headers = {"Docker-Content-Digest": str(digest)}
            if self.referrers and b'"subject"' in data:
                headers["OCI-Subject"] = json.loads(data)["subject"]["digest"]
            return web.Response(status=201, headers=headers)
        if request.method == "DELETE":
            return web.Response(status=202 if self.manifests.pop(key, None) else 404)
        if key not in self.manifests:
            return web.json_response(
                {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]},
                status=404,
            )
        data, kind = self.manifests[key]
        return web.Response(
            body=data, headers={"Content-Type": kind, "Docker-Content-Digest": Digest.of(data)}
        )

    async def _referrers(self, request: web.Request) -> web.Response:
        if not self.referrers:
            return web.Response(status=404)
        repo, found = request.match_info["repo"], {}
        for (where, _), (data, kind) in self.manifests.items():
            subject = json.loads(data).get("subject", {}).get("digest")
            if (where, subject) == (repo, request.match_info["digest"]):
                digest = str(Digest.of(data))
                found[digest] = {"mediaType": kind, "digest": digest, "size": len(data)}
        at, entries = int(request.query.get("at", 0)), list(found.values())
        more = {"Link": f'<{request.path}?at={at + 2}>; rel="next"'} if entries[at + 2 :] else {}
        body = {"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": entries[at : at + 2]}
        return web.json_response(body, headers=more)

    async def _tags(self, request: web.Request) -> web.Response:
        tags = sorted(
            {
                ref
                for repo, ref in self.manifests
                if repo == request.match_info["repo"] and ":" not in ref
            }
        )
        at, size = int(request.query.get("at", 0)), 2
        links = (
            {"Link": f'<{request.path}?at={at + size}>; rel="next"'}
            if at + size < len(tags)
            else {}
        )
        return web.json_response({"tags": tags[at : at + size]}, headers=links)

    async def _blob(self, request: web.Request) -> web.Response:
        data = self.blobs.get(request.match_info["digest"])
        if data is None:
            return web.json_response({"errors": [{"code": "BLOB_UNKNOWN"}]}, status=404)
        if match := re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", "")):
            at = int(match[1])
            return web.Response(
                status=206,
                body=data[at:],
                headers={"Content-Range": f"bytes {at}-{len(data) - 1}/{len(data)}"},
            )
        return web.Response(body=data)

    async def _start(self, request: web.Request) -> web.Response:
        if self.mounts and request.query.get("mount") in self.blobs:
            return web.Response(status=201)
        name = f"u{len(self.uploads)}"
        self.uploads[name] = bytearray()
        return web.Response(
            status=202,
            headers={"Location": f"/v2/{request.match_info['repo']}/blobs/uploads/{name}?state=x"},
        )

    async def _upload(self, request: web.Request) -> web.Response:
        have = self.uploads.get(request.match_info["id"])
        if have is None:
            return web.json_response({"errors": [{"code": "BLOB_UPLOAD_UNKNOWN"}]}, status=404)
        where = {
            "Location": request.path_qs.split("&digest")[0],
            "Range": f"0-{max(0, len(have) - 1)}",
        }
        if request.method == "GET":
            return web.Response(status=204, headers=where)
        if "Content-Range" in request.headers and int(
            request.headers["Content-Range"].split("-")[0]
        ) != len(have):
            return web.Response(status=416, headers=where)
        async for chunk in request.content.iter_any():
            have += chunk
        where["Range"] = f"0-{max(0, len(have) - 1)}"
        if request.method == "PATCH":
            return web.Response(status=202, headers=where)
        digest = request.query["digest"]
        if "sha256:" + hashlib.sha256(have).hexdigest() != digest:
            return web.json_response(
                {"errors": [{"code": "DIGEST_INVALID", "message": "did not match"}]}, status=400
            )
        self.blobs[digest] = bytes(self.uploads.pop(request.match_info["id"]))
        return web.Response(status=201, headers={"Docker-Content-Digest": digest})


class Faults:
    """What can go wrong with one answer."""

    @staticmethod
    def status(code: int, **headers: str) -> Fault:
        async def fault(request: web.Request, handler: Handler) -> web.StreamResponse:
            await request.read()
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            body = json.dumps({"errors": [{"code": f"E{code}", "message": "told to"}]})
            return web.Response(status=code, text=body, headers=names)

        return fault

    @staticmethod
    def cut(after: int) -> Fault:
        """The first bytes of the honest answer, then a reset."""

        async def fault(request: web.Request, handler: Handler) -> web.StreamResponse:
            honest: Any = await handler(request)
            response = web.StreamResponse(status=honest.status, headers=honest.headers)
            response.content_length = len(honest.body)
            await response.prepare(request)
            await response.write(honest.body[:after])
            assert request.transport is not None
            request.transport.close()
            return response

        return fault

    @staticmethod
    async def reset(request: web.Request, handler: Handler) -> web.StreamResponse:
        """No answer at all."""
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    @staticmethod
    def reset_after(registry: FaultyRegistry, count: int) -> Fault:
        """An upload of which the registry keeps ``count`` bytes before the connection breaks."""

        async def fault(request: web.Request, handler: Handler) -> web.StreamResponse:
            have = registry.uploads[request.match_info["id"]]
            data = await request.content.readexactly(count)
            have += data
            return await Faults.reset(request, handler)

        return fault

    @staticmethod
    def edit(**changes: Any) -> Fault:
        """The honest answer with another body, headers (None = without) or status."""

        async def fault(request: web.Request, handler: Handler) -> web.StreamResponse:
            honest: Any = await handler(request)
            body = changes.get("body", honest.body)
            headers = {**honest.headers, **changes.get("headers", {})}
            headers = {
                name: value
                for name, value in headers.items()
                if value is not None and name != "Content-Length"
            }
            return web.Response(
                status=changes.get("status", honest.status), body=body, headers=headers
            )

        return fault

    @staticmethod
    def redirect(target: str) -> Fault:
        async def fault(request: web.Request, handler: Handler) -> web.StreamResponse:
            return web.Response(status=307, headers={"Location": target + request.path})

        return fault

    @staticmethod
    def slow(seconds: float) -> Fault:
        async def fault(request: web.Request, handler: Handler) -> web.StreamResponse:
            await asyncio.sleep(seconds)
            return await handler(request)

        return fault


@asynccontextmanager
async def serving() -> AsyncIterator[Callable[[FaultyRegistry], Awaitable[FaultyRegistry]]]:
    """Starts registries on loopback; ends them."""
    runners: list[web.AppRunner] = []

    async def start(registry: FaultyRegistry) -> FaultyRegistry:
        runner = web.AppRunner(registry.application(), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        registry.port = runner.addresses[0][1]
        runners.append(runner)
        return registry

    try:
        yield start
    finally:
        for runner in runners:
            await runner.cleanup()
