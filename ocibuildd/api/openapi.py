"""The OpenAPI document of the native API, made from the table of routes."""

from __future__ import annotations

import functools
from typing import Any

import msgspec

from .. import __version__
from ..build.info import BuildInfo
from ..model import events
from . import run
from .routes import ROUTES, Parameter, Route

STRING: dict[str, Any] = {"type": "string"}
INTEGER: dict[str, Any] = {"type": "integer"}
NUMBER: dict[str, Any] = {"type": "number"}
BOOLEAN: dict[str, Any] = {"type": "boolean"}
OBJECT: dict[str, Any] = {"type": "object"}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


_IMAGE = _object(
    id=STRING, parent=STRING, names=_list(STRING), digests=_list(STRING), created=NUMBER, size=INTEGER,
    shared=INTEGER, created_by=STRING, labels=OBJECT, intermediate=BOOLEAN, platform=STRING,
    build=STRING,
)
_REMOVAL = _object(
    kind=STRING, id=STRING, bytes=INTEGER, rule=STRING, why=STRING, description=STRING,
    names=_list(STRING),
)
ANSWERS: dict[str, dict[str, Any]] = {
    "Object": OBJECT,
    "Error": {
        "type": "object", "required": ["code", "message"],
        "properties": {"code": STRING, "message": STRING, "hint": STRING, "details": OBJECT},
    },
    "Version": _object(
        version=STRING, api_version=STRING, docker_api_version=STRING, python=STRING, platform=STRING,
        kernel=STRING, pid=INTEGER,
    ),
    "Health": _object(status=STRING),
    "Doctor": _object(
        requirements=_list(_object(name=STRING, level=STRING, found=STRING, cost=STRING, fix=STRING))
    ),
    "Login": _object(status=STRING, identity_token=STRING),
    "Upload": _object(id=STRING, size=INTEGER),
    "Started": _object(id=STRING),
    "Builds": _object(builds=_list({"$ref": "#/components/schemas/BuildInfo"})),
    "Explained": _object(steps=_list(OBJECT)),
    "Images": _object(images=_list(_IMAGE)),
    "Removed": _object(removed=_list(OBJECT)),
    "History": _object(
        history=_list(_object(
            id=STRING, created=NUMBER, created_by=STRING, size=INTEGER, comment=STRING,
            names=_list(STRING), empty=BOOLEAN,
        ))
    ),
    "Changes": _object(changes=_list(_object(kind=STRING, path=STRING, size=INTEGER))),
    "Named": _object(name=STRING),
    "Loaded": _object(loaded=_list(_object(name=STRING, image=STRING))),
    "Imported": _object(image=STRING),
    "Pruned": _object(
        deleted=_list(_REMOVAL), space=INTEGER, used=INTEGER, seconds=NUMBER, dry_run=BOOLEAN
    ),
    "Checked": _object(
        problems=_list(STRING), findings=_list(OBJECT), blobs=INTEGER, bytes=INTEGER, layers=INTEGER,
        records=INTEGER, images=INTEGER, trees=INTEGER, repaired=INTEGER,
    ),
    "Mounts": _object(mounts=_list(OBJECT)),
    "Cleared": _object(space=INTEGER),
    "Filled": _object(files=INTEGER, bytes=INTEGER),
}


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _parameter(item: Parameter) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": item.kind}
    if item.kind == "array":
        schema["items"] = STRING
    return {
        "name": item.name, "in": "query", "description": item.about, "required": item.required,
        "schema": schema,
    }


def _content(what: type | str) -> dict[str, Any]:
    """A body: a struct or a named schema as JSON, or bytes of a media type."""
    if isinstance(what, str) and "/" in what:
        return {what: {"schema": {"type": "string", "format": "binary"}}}
    name = what if isinstance(what, str) else what.__name__
    return {"application/json": {"schema": _reference(name)}}


def _operation(route: Route) -> dict[str, Any]:
    inside = [part.strip("{}") for part in route.path.split("/") if part.startswith("{")]
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": STRING} for name in inside
    ]
    parameters += [_parameter(item) for item in route.query]
    answers: dict[str, Any] = {
        str(route.status): {"description": route.about, "content": _content(route.answer)},
        "default": {"description": "What went wrong", "content": _content("Error")},
    }
    if any(item.name == "follow" for item in route.query) and route.status == 201:
        answers["200"] = {"description": "The build's events", "content": _content("application/x-ndjson")}
    operation: dict[str, Any] = {
        "operationId": f"{route.handler.__module__.rpartition('.')[2]}.{route.handler.__name__}",
        "summary": route.about, "parameters": parameters, "responses": answers,
    }
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": _content(route.body)}
    return operation


@functools.cache
def document() -> dict[str, Any]:
    """The whole document (OpenAPI 3.1)."""
    bodies = [route.body for route in ROUTES if isinstance(route.body, type)]
    _, schemas = msgspec.json.schema_components(
        [BuildInfo, run.RunBody, run.DebugBody, *dict.fromkeys(bodies)],
        ref_template="#/components/schemas/{name}",
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ocibuildd", "version": __version__,
            "description": f"{events.__doc__}\n\nFrames of /v1/run and /v1/debug:\n\n{run_frames()}",
        },
        "paths": paths,
        "components": {"schemas": {**ANSWERS, **schemas}},
    }


def run_frames() -> str:
    """How the streams of a process are framed."""
    from . import frames

    return (frames.__doc__ or "").strip()
