"""Dockerfiles: text → Plan, without I/O.

    parse(data, filename="Dockerfile") -> Dockerfile            raises errors.DockerfileError
    required_images(dockerfile, options, known) -> [(ref, Platform), …]
    lower(dockerfile, options, known) -> model.graph.Plan
    check(dockerfile, options, known) -> [model.graph.Warning, …]
    outline(dockerfile, options, known), targets(dockerfile) -> JSON-able, in BuildKit's shapes

``known`` maps ``(ref, str(platform))`` to ResolvedImage.  The build layer calls ``required_images``,
resolves what it names, and calls again (ONBUILD may bring in more) until it names nothing; then
``lower`` can't lack an image.
"""

from __future__ import annotations

from .options import LowerOptions, NamedContext, ResolvedImage

__all__ = ["LowerOptions", "NamedContext", "ResolvedImage"]
