"""Dockerfiles: text → Plan, without I/O.

    parse(data, filename="Dockerfile") -> Dockerfile            raises errors.DockerfileError
    required_images(dockerfile, options, known) -> [(ref, Platform), …]
    lower(dockerfile, options, known) -> model.graph.Plan
    check(dockerfile, options, known) -> [model.graph.Warning, …]
    lint(data, options, known) -> Report                        findings and the error, of any text
    findings(source, warnings, error), outline(dockerfile, options, known), targets(dockerfile)
                                                                JSON-able, in BuildKit's shapes
    unresolved(dockerfile, options, known, ref)                 where an image is named, and what was meant
    epoch_from(dockerfile, options) -> what SOURCE_DATE_EPOCH is to be asked of, or None

``known`` maps ``(ref, str(platform))`` to ResolvedImage.  The build layer calls ``required_images``,
resolves what it names, and calls again (ONBUILD may bring in more) until it names nothing; then
``lower`` can't lack an image.
"""

from __future__ import annotations

from ..model.graph import ContextSource
from .frontend import Report, check, epoch_from, lint, lower, parse, required_images, unresolved
from .gitref import GitRef, git_source, parse_git_ref
from .instructions import Dockerfile
from .options import LowerOptions, NamedContext, ResolvedImage
from .outline import findings, outline, targets
from .platforms import normalize, parse_platform

__all__ = [
    "ContextSource", "Dockerfile", "GitRef", "LowerOptions", "NamedContext", "Report", "ResolvedImage",
    "check", "epoch_from", "findings", "git_source", "lint", "lower", "normalize", "outline", "parse", "parse_git_ref",
    "parse_platform", "required_images", "targets", "unresolved",
]  # fmt: skip
