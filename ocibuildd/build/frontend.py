"""From a Dockerfile to a Plan: resolves what images it names, as often as that brings up new ones."""

from __future__ import annotations

import asyncio
import os
import platform as host
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from .. import dockerfile as front
from ..dockerfile import LowerOptions, NamedContext
from ..errors import BuildError, DockerfileError, InvalidArgument
from ..executor.image import ImagePuller, ResolvedImage, name_of
from ..executor.source import Directory
from ..model.graph import GitSource, HttpSource, ImageSource, Plan
from ..model.oci import Platform
from ..model.reference import Reference
from ..model.request import BuildRequest
from .context import ContextOpener, OpenContext, parse_ignore

Kind = Literal["image", "local", "git", "http", "oci-layout"]
AskEpoch = Callable[[GitSource | HttpSource], Awaitable[int | None]]
EPOCH = "SOURCE_DATE_EPOCH"
MAX_ROUNDS = 32
"""ONBUILD triggers that bring in images whose ONBUILD triggers bring in images."""
MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def host_platform() -> Platform:
    """The platform that RUN steps run on."""
    machine = host.machine()
    variant = {"armv7l": "v7"}.get(machine, "")
    return Platform(MACHINES.get(machine, machine), "linux", variant=variant)


def parse_platform(text: str) -> Platform:
    """``os/arch[/variant]``, or ``local``.  Raises InvalidArgument."""
    if text == "local":
        return host_platform()
    try:
        return front.parse_platform(text, host_platform())
    except ValueError as error:
        raise InvalidArgument(f"platform {text[:100]!r}: {error}") from None


def checked_until(
    error: DockerfileError, context: OpenContext, options: LowerOptions,
    known: Mapping[tuple[str, str], front.ResolvedImage],
) -> object:
    """--call=check of a Dockerfile that can't be built: what was found before the error, and the error."""
    report = front.lint(context.dockerfile, options, known, filename=context.filename)
    return front.findings(report.source, report.warnings, report.error or error)


async def or_findings(
    work: Awaitable[dict[str, Any]], asked: BuildRequest, context: OpenContext
) -> dict[str, Any]:
    """What ``work`` gives.  --call=check of a Dockerfile that can't be read has an answer all the same."""
    try:
        return await work
    except DockerfileError as error:
        if asked.call != "check":
            raise
        options = LowerOptions(target=asked.target, build_args=asked.build_args)
        return {"result": checked_until(error, context, options, {})}


@dataclass(frozen=True, slots=True)
class Lowered:
    """A plan and what it stands on: images by vertex index."""

    plan: Plan
    images: Mapping[int, ResolvedImage]
    warnings: tuple[str, ...] = ()


class FrontEnd:
    """One build's way from text to plan."""

    def __init__(self, puller: ImagePuller, asked: BuildRequest, context: OpenContext):
        self._puller = puller
        self._asked = asked
        self._context = context
        self._tree = front.parse(context.dockerfile, context.filename)
        self._resolved: dict[tuple[str, str], ResolvedImage] = {}
        self._known: dict[tuple[str, str], front.ResolvedImage] = {}
        self.directories: dict[str, Directory] = {}

    def options(
        self, platform: Platform | None, contexts: Mapping[str, NamedContext], *, reproducible: bool
    ) -> LowerOptions:
        """What the request asks of the front end."""
        asked = self._asked
        here = host_platform()
        arguments = dict(asked.build_args)
        if asked.epoch:
            arguments.setdefault(EPOCH, asked.epoch)
        return LowerOptions(
            target=asked.target, build_args=arguments, labels=asked.labels,
            platform=platform or here, build_platform=here, implicit_platform=platform is None,
            no_cache=asked.no_cache, no_cache_filter=asked.no_cache_filter, network=asked.network,
            contexts=contexts, context=front.ContextSource(ignore=self._context.ignore),
            epoch=0 if reproducible and not arguments.get(EPOCH) else None,
            hostname=arguments.get("BUILDKIT_SANDBOX_HOSTNAME") or "",
            cache_namespace=arguments.get("BUILDKIT_CACHE_MOUNT_NS") or "",
            multi_platform=len(asked.platforms) > 1, compat=asked.compat,
        )

    def named_contexts(self, opener: ContextOpener) -> dict[str, NamedContext]:
        """``--build-context``, classified; local ones are opened.  Raises InvalidArgument, NotFound."""
        found: dict[str, NamedContext] = {}
        for name, value in self._asked.build_contexts.items():
            kind, rest = _classify(value)
            if kind != "local":
                found[name] = NamedContext(kind, rest)
                continue
            directory = opener.local(rest, f"build context {name}")
            directory.ignore = parse_ignore(directory)
            self.directories[name] = directory
            found[name] = NamedContext("local", "", directory.ignore)
        return found

    async def with_epoch(self, options: LowerOptions, ask: AskEpoch) -> LowerOptions:
        """SOURCE_DATE_EPOCH where its value is a source's time: the source is asked.  Raises
        DockerfileError and what fetching raises."""
        source = front.epoch_from(self._tree, options)
        if source is not None:
            return replace(options, epoch=await ask(source))
        if options.build_args.get(EPOCH) == "context":
            return replace(options, epoch=self._context.epoch)
        return options

    async def resolve(self, options: LowerOptions) -> tuple[str, ...]:
        """Resolve images until none is missing; gives warnings.  Raises DockerfileError and what
        resolving raises."""
        warnings: list[str] = []
        for _ in range(MAX_ROUNDS):
            wanted = [
                (ref, platform) for ref, platform in front.required_images(self._tree, options, self._known)
                if (ref, str(platform)) not in self._known
            ]
            if not wanted:
                break
            for image in await asyncio.gather(*(self._resolve(*want, options) for want in wanted)):
                warnings += image.warnings
        else:
            raise DockerfileError(f"more than {MAX_ROUNDS} rounds of images that bring in others")
        return tuple(dict.fromkeys(warnings))

    async def lower(self, options: LowerOptions) -> Lowered:
        """The plan.  Raises as ``resolve``."""
        warnings = await self.resolve(options)
        plan = front.lower(self._tree, options, self._known)
        by_digest = {(image.digest, layout): image for layout, image in self._layouts()}
        images = {
            index: by_digest[vertex.op.digest, vertex.op.layout]
            for index, vertex in enumerate(plan.vertices) if isinstance(vertex.op, ImageSource)
        }
        return Lowered(plan, images, warnings)

    def _layouts(self) -> list[tuple[str, ResolvedImage]]:
        return [(self._known[key].layout, image) for key, image in self._resolved.items()]

    async def _resolve(
        self, ref: str, platform: Platform, options: LowerOptions
    ) -> ResolvedImage:
        try:
            image = await self._puller.resolve(
                ref, platform, pull=self._asked.pull, auth=self._asked.auth
            )
        except BuildError as error:
            if not error.message.startswith(ref):
                error.message = f"{ref}: {error.message}"
            hint, where = front.unresolved(self._tree, options, self._known, ref)
            error.hint = hint or self._of_another_platform(ref, platform) or error.hint
            error.details = {**where, **error.details}
            raise
        name = str(image.reference) if image.reference is not None else ref
        self._resolved[ref, str(platform)] = image
        self._known[ref, str(platform)] = front.ResolvedImage(name, image.digest, image.config)
        return image

    def _of_another_platform(self, ref: str, platform: Platform) -> str:
        """A hint, where the registry was asked because the local image of that name is for something else."""
        images = self._puller.store.images
        try:
            name = images.resolve(name_of(Reference.parse(ref)))
        except ValueError:
            return ""
        image = images.get(name.image) if name is not None else None
        if image is None or image.platform == str(platform):
            return ""  # --pull, or it came in the meantime
        return f"the local image of that name is for {image.platform}, {platform} was wanted: the registry was asked"

    def check(self, options: LowerOptions) -> object:
        """--call=check: the findings, and the error that the build would end with."""
        try:
            return front.findings(self._tree.source, front.check(self._tree, options, self._known))
        except DockerfileError as error:
            return checked_until(error, self._context, options, self._known)

    def outline(self, options: LowerOptions) -> object:
        """--call=outline."""
        return front.outline(self._tree, options, self._known)

    def targets(self) -> object:
        """--call=targets."""
        return front.targets(self._tree)

    def close(self) -> None:
        """Give the named contexts' descriptors back."""
        for directory in self.directories.values():
            directory.close()


def _classify(value: str) -> tuple[Kind, str]:
    """(kind, value) of a --build-context."""
    if value.startswith("docker-image://"):
        return "image", value.removeprefix("docker-image://")
    if value.startswith("oci-layout://"):
        return "oci-layout", value.removeprefix("oci-layout://")
    if value.startswith("git@") or ("://" in value and front.parse_git_ref(value) is not None):
        return "git", value
    if value.startswith(("http://", "https://")):
        return "http", value
    return "local", os.path.abspath(value) if value.startswith("/") else value


__all__ = ["FrontEnd", "Lowered", "host_platform", "parse_platform"]
