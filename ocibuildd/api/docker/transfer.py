"""Images on their way in and out over the Docker Engine API: create (pull, import), push, get, load."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import replace
from typing import Any

from aiohttp import web

from ...errors import BuildError, InvalidArgument, NotFound
from ...image.service import chosen_platform
from ...model.reference import Reference
from ...registry.fetch import Incoming
from ...registry.protocol import redact
from .events import Events
from .images import digest_or_tag, find
from .progress import PULL_WORDS, PUSH_WORDS, Transfers
from .protocol import (
    HEADERS,
    ApiError,
    JsonStream,
    check_tag,
    flag,
    message_of,
    parse_reference,
    registry_auth,
)
from .words import PULL_CODES, download_failed, pull_refused, tar_failed, unreachable

READ_SIZE = 1 << 18
MAX_TAGS = 1000
NO_CREDENTIALS = "no credentials for it"


def pulled_status(name: str, *, fresh: bool) -> dict[str, str]:
    """The last line of a pull."""
    words = "Downloaded newer image" if fresh else "Image is up to date"
    return {"status": f"Status: {words} for {name}"}


class Progress:
    """Messages that a service emits from inside, sent in order by the handler."""

    def __init__(self, stream: JsonStream, words: dict[str, str], hidden: Collection[str] = ()):
        import asyncio

        self._queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._stream = stream
        self._transfers = Transfers(words)
        self._hidden = hidden

    def emit(self, kind: str, /, **fields: Any) -> None:
        """As the services call it; a layer's progress is told at most 50 times."""
        if kind not in {"status", "vertex.status"}:
            return
        if str(fields.get("id", "")) in self._hidden:
            return
        message = self._transfers.message(fields)
        if message is not None:
            self._queue.put_nowait(message)

    async def run(self, work: Any) -> Any:
        """Await the work while its messages are written; cancels it when the client is gone."""
        import asyncio

        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda _: self._queue.put_nowait(None))
        try:
            while (message := await self._queue.get()) is not None:
                await self._stream.send(message)
            return await task
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})


class Transfer:
    """Handlers that move images.  ``images``: image.service.Images; ``registry``: for lists of tags;
    ``fetcher``: for root file systems by URL."""

    def __init__(self, images: Any, registry: Any, fetcher: Any, events: Events):
        self._images = images
        self._registry = registry
        self._fetcher = fetcher
        self._events = events

    async def create(self, request: web.Request) -> web.StreamResponse:
        """POST /images/create: a pull (``fromImage``) or an import (``fromSrc``)."""
        query = request.query
        platform = query.get("platform", "").lower()
        try:
            chosen_platform(platform)
        except InvalidArgument as error:
            raise ApiError(400, error.message.removeprefix("invalid platform: ")) from None
        if query.get("fromImage"):
            return await self._pull(request, platform)
        if query.get("fromSrc"):
            return await self._import(request, platform)
        raise ApiError(400, "nothing to create from: neither fromImage nor fromSrc is given")

    async def _pull(self, request: web.Request, platform: str) -> web.StreamResponse:
        query = request.query
        tag, digest = digest_or_tag(query.get("tag", ""))
        reference = parse_reference(query["fromImage"])
        if tag:
            parse_reference(f"{reference.repository}:{tag}")
        if tag or digest:
            reference = replace(reference, tag=tag, digest=digest)
        if reference.familiar_name == "scratch":
            raise ApiError(403, "'scratch' is a reserved name")
        options = {"auth": registry_auth(request, reference.domain), "platform": platform}
        stream = JsonStream(request)
        try:
            if reference.tag or reference.digest:
                await self._pull_one(stream, reference, options, status=True)
            else:
                tags = await self._registry.tags(reference, auth=options["auth"])
                fresh = [
                    await self._pull_one(stream, replace(reference, tag=tag), options)
                    for tag in tags[:MAX_TAGS]
                ]
                await stream.send(pulled_status(reference.familiar_name, fresh=any(fresh)))
        except BuildError as error:
            if not stream.started:
                raise self._refused(error, reference) from None
            await stream.fail(error)
        return await stream.end()

    async def _pull_one(
        self, stream: JsonStream, reference: Reference, options: dict[str, Any], *, status: bool = False
    ) -> bool:
        """Pull one tag; was anything new?"""
        progress = Progress(stream, PULL_WORDS)
        name = reference.tag or str(reference.digest or "")
        stream.prelude({"status": f"Pulling from {reference.path}", "id": name})
        item = await progress.run(self._images.pull(reference, emit=progress.emit, **options))
        await stream.send({"status": f"Digest: {item.digest}"})
        if status:
            await stream.send(pulled_status(item.reference, fresh=item.fresh))
        self._events.image("pull", str(item.id), item.reference)
        return bool(item.fresh)

    @staticmethod
    def _refused(error: BuildError, reference: Reference) -> ApiError:
        """A pull that failed before a byte was streamed: a status of its own, in Docker's words."""
        if error.code in PULL_CODES:
            return ApiError(404, pull_refused(error.code, str(reference), error.message))
        return ApiError(min(500, error.status), unreachable(error.message))

    async def _import(self, request: web.Request, platform: str) -> web.StreamResponse:
        query = request.query
        source = query["fromSrc"]
        tag, _ = digest_or_tag(query.get("tag", ""))
        name = query.get("repo", "")
        if name and tag and ":" not in name.rpartition("/")[2]:
            name = f"{name}:{tag}"
        if name:
            check_tag(parse_reference(name))
        changes = [change for change in query.getall("changes", []) if change]
        stream = JsonStream(request)

        async def take(body: AsyncIterator[bytes], origin: str) -> None:
            image = await self._images.import_rootfs(
                body, name, changes=changes, message=query.get("message", ""), platform=platform, origin=origin,
            )  # fmt: skip
            if name:
                self._events.image("tag", str(image), name)
            self._events.image("import", str(image))
            await stream.send({"status": str(image)})

        if source == "-":
            await take(request.content.iter_chunked(READ_SIZE), source)
            return await stream.end()
        # dockerd takes a URL without a scheme for http.
        url = source if "://" in source else f"http://{source}"
        try:
            async with self._fetcher.open(url) as body:
                stream.prelude({"status": f"Downloading from {redact(url)}"})
                await take(told(stream, body), redact(url))
        except BuildError as error:
            refused = ApiError(min(error.status, 500), download_failed(message_of(error), url))
            if not stream.started:
                raise refused from None
            await stream.fail(refused)
        return await stream.end()

    async def push(self, request: web.Request) -> web.StreamResponse:
        """POST /images/{name}/push?tag="""
        reference = parse_reference(request.match_info["name"])
        tag = request.query.get("tag", "") or reference.tag
        stream = JsonStream(request)
        name = reference.familiar_name
        # A config is no layer: Docker doesn't tell of it.
        images = self._images.list(all=False, filters={"reference": [name]})
        progress = Progress(stream, PUSH_WORDS, {image.id.short for image in images})
        options = {"auth": registry_auth(request, reference.domain), "emit": progress.emit}
        await stream.send({"status": f"The push refers to repository [{reference.repository}]"})
        try:
            self._known(f"{name}:{tag}" if tag else name, found=bool(images))
            if tag:
                pushed = [await progress.run(self._images.push(f"{name}:{tag}", **options))]
            else:
                pushed = await progress.run(self._images.push_all(name, **options))
        except BuildError as error:
            if NO_CREDENTIALS in error.message:
                error = BuildError("no basic auth credentials")
            elif error.code not in PULL_CODES:
                error = BuildError(unreachable(error.message))
            await stream.fail(error)
            return await stream.end()
        for item in pushed:
            aux = {"Tag": item.tag or tag, "Digest": str(item.digest), "Size": item.size}
            line = f"{aux['Tag']}: digest: {item.digest} size: {item.size}"
            await stream.send({"status": line}, {"progressDetail": {}, "aux": aux})
            self._events.image("push", item.reference, item.reference)
        return await stream.end()

    def _known(self, name: str, *, found: bool) -> None:
        """Raises NotFound, which Docker tells inside the stream."""
        repository = name
        if ":" in name.rpartition("/")[2]:
            repository = name.rpartition(":")[0]
            try:
                self._images.find(name)
            except BuildError:
                found = False
        if not found:
            raise NotFound(f"An image does not exist locally with the tag: {repository}")

    async def get(self, request: web.Request) -> web.StreamResponse:
        """GET /images/get?names= and GET /images/{name}/get: a docker archive."""
        names = request.query.getall("names", []) or [request.match_info.get("name", "")]
        names = [name for item in names for name in item.split(",") if name]
        if not names:
            raise ApiError(400, "no image names given")
        found = [find(self._images, name) for name in names]
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "application/x-tar"})
        await response.prepare(request)
        async for data in self._images.save(names, form="docker"):
            await response.write(data)
        await response.write_eof()
        for summary in found:
            self._events.image("save", str(summary.id))
        return response

    async def load(self, request: web.Request) -> web.StreamResponse:
        """POST /images/load?quiet="""
        stream = JsonStream(request)
        quiet = flag(request.query, "quiet", default=True)
        progress = Progress(stream, {**PULL_WORDS, "extracting": "Loading layer"})
        emit: Callable[..., None] = _silent if quiet else progress.emit
        body: AsyncIterator[bytes] = request.content.iter_chunked(READ_SIZE)
        try:
            loaded = await progress.run(self._images.load(body, emit=emit))
        except BuildError as error:
            # Docker's clients look for this inside the stream of a 200.
            await stream.fail(ApiError(error.status, tar_failed(message_of(error))))
            return await stream.end()
        for item in loaded:
            for name in item.names:
                await stream.send({"stream": f"Loaded image: {name}\n"})
            if not item.names:
                await stream.send({"stream": f"Loaded image ID: {item.id}\n"})
            self._events.image("load", str(item.id))
        return await stream.end()


async def told(stream: JsonStream, body: Incoming) -> AsyncIterator[bytes]:
    """A download's bytes, with the client told how far it is."""
    transfers, current = Transfers({"importing": "Importing"}), 0
    async for data in body.chunks():
        current += len(data)
        message = transfers.message({"text": "importing", "current": current, "total": body.total})
        if message is not None:
            del message["id"]
            await stream.send(message)
        yield data


def _silent(*_: Any, **__: Any) -> None:
    """For clients that want no progress."""
