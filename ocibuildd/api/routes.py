"""Every route of the native API, with what the OpenAPI document says of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from ..model.request import BuildRequest
from . import builds, frames, images, registries, run, spaces, system
from .respond import NDJSON, TAR

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter.  kind: string, integer, boolean or array (of strings, by repetition)."""

    name: str
    about: str
    kind: str = "string"
    required: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """body: a struct (JSON), or a media type.  answer: the name of a schema of ``openapi.ANSWERS``,
    or a media type."""

    method: str
    path: str
    handler: Handler
    about: str
    answer: str
    body: type | str | None = None
    query: tuple[Parameter, ...] = ()
    status: int = 200


def _flag(name: str, about: str) -> Parameter:
    return Parameter(name, about, "boolean")


NAME = Parameter("name", "an image's name, digest, id or unique prefix of its id", required=True)
PLATFORM = Parameter("platform", "os/architecture[/variant]")
MOUNT = Parameter("id", "the cache mount's id", required=True)

ROUTES = (
    Route("GET", "/v1/version", system.version, "Versions of daemon and API", "Version"),
    Route("GET", "/v1/health", system.health, "Is the daemon taking builds?", "Health"),
    Route("GET", "/v1/info", system.info, "The daemon's state and settings", "Object"),
    Route("GET", "/v1/doctor", system.doctor, "What the host offers and lacks", "Doctor"),
    Route("GET", "/v1/openapi.json", system.openapi, "This document", "Object"),
    Route("POST", "/v1/login", system.login, "Check credentials with a registry", "Login",
          body=system.LoginBody),
    Route("POST", "/v1/uploads", builds.upload, "Send a context as a tar", "Upload", body=TAR,
          status=201),
    Route("POST", "/v1/builds", builds.create,
          "Start a build; with follow its events are the answer (200), and leaving ends it", "Started",
          body=BuildRequest, status=201,
          query=(_flag("follow", "stream the events"), _flag("detach", "leaving doesn't end it"))),
    Route("GET", "/v1/builds", builds.list_builds, "Builds, newest first", "Builds"),
    Route("GET", "/v1/builds/{build}", builds.get, "One build; latest is the newest", "BuildInfo"),
    Route("GET", "/v1/builds/{build}/events", builds.events, "A build's events", NDJSON,
          query=(Parameter("from", "the first event's number", "integer"),
                 _flag("follow", "go on until the build has ended"))),
    Route("POST", "/v1/builds/{build}/cancel", builds.cancel, "End a build", "BuildInfo"),
    Route("GET", "/v1/builds/{build}/explain", builds.explain, "Why each step ran", "Explained",
          query=(Parameter("step", "a step's number or a part of its text"),)),
    Route("GET", "/v1/builds/{build}/outputs/{index}", builds.output,
          "What an output without a destination was written to", TAR),
    Route("POST", "/v1/verify", builds.verify, "Build again and compare", NDJSON,
          body=builds.VerifyBody),
    Route("GET", "/v1/images", images.list_images, "Images, newest first", "Images",
          query=(_flag("all", "intermediate ones too"), Parameter("filter", "KEY=VALUE", "array"))),
    Route("DELETE", "/v1/images", images.remove, "Remove a name, or an image", "Removed",
          query=(NAME, _flag("force", "with all its names"), _flag("noprune", "keep parents"))),
    Route("GET", "/v1/images/inspect", images.inspect, "Everything about an image", "Object",
          query=(NAME, PLATFORM)),
    Route("GET", "/v1/images/history", images.history, "An image's steps, newest first", "History",
          query=(NAME,)),
    Route("GET", "/v1/images/diff", images.diff, "Files that differ", "Changes",
          query=(Parameter("a", "the first image; default: b without its last layer"),
                 Parameter("b", "the second image", required=True))),
    Route("POST", "/v1/images/tag", images.tag, "Give an image a name", "Named",
          body=images.TagBody, status=201),
    Route("POST", "/v1/images/pull", images.pull, "Pull an image", NDJSON, body=images.TransferBody),
    Route("POST", "/v1/images/push", images.push, "Push an image", NDJSON, body=images.TransferBody),
    Route("GET", "/v1/images/save", images.save, "Images as a tar", TAR,
          query=(Parameter("name", "an image's name or id", "array", required=True),
                 Parameter("format", "docker or oci"), PLATFORM)),
    Route("POST", "/v1/images/load", images.load, "Images from a tar", "Loaded", body=TAR),
    Route("POST", "/v1/images/import", images.import_image, "An image from a root file system",
          "Imported", body=TAR, status=201,
          query=(Parameter("name", "the image's name"), PLATFORM,
                 Parameter("change", "an instruction to apply", "array"),
                 Parameter("message", "a comment for the history"))),
    Route("POST", "/v1/registry/tags", registries.tags, "The tags of a repository in its registry", "Object",
          body=registries.RepositoryBody),
    Route("POST", "/v1/registry/delete", registries.delete, "Delete a tag or manifest in its registry", "Object",
          body=registries.DeleteBody),
    Route("POST", "/v1/run", run.run, "Run a command in a throw-away sandbox", frames.CONTENT_TYPE,
          body=frames.CONTENT_TYPE),
    Route("POST", "/v1/debug", run.debug, "Enter the sandbox of a failed step", frames.CONTENT_TYPE,
          body=frames.CONTENT_TYPE),
    Route("POST", "/v1/prune", spaces.prune, "Remove what is unused", "Pruned",
          body=spaces.PruneBody),
    Route("POST", "/v1/gc", spaces.collect, "Apply the configured policies now", "Pruned",
          body=spaces.GcBody),
    Route("GET", "/v1/df", spaces.df, "Disk usage", "Object",
          query=(_flag("verbose", "each image, record and cache mount"),)),
    Route("POST", "/v1/system/check", spaces.check, "Verify every blob and row", "Checked",
          body=spaces.CheckBody),
    Route("GET", "/v1/cache/mounts", spaces.list_mounts, "Cache mounts", "Mounts",
          query=(Parameter("id", "only this one"),)),
    Route("DELETE", "/v1/cache/mounts", spaces.clear_mount, "Empty a cache mount", "Cleared",
          query=(MOUNT,)),
    Route("GET", "/v1/cache/mounts/tar", spaces.export_mount, "A cache mount as a tar", TAR,
          query=(MOUNT,)),
    Route("PUT", "/v1/cache/mounts/tar", spaces.import_mount, "Fill a cache mount from a tar",
          "Filled", body=TAR, query=(MOUNT,)),
)
