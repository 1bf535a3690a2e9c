"""Build checks: BuildKit's rules, what switches them off, and the warnings that they gave."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..model.graph import Location, Warning  # noqa: A004
from .faults import Fault, at, nearest
from .gotext import parse_bool, quote, to_utf8, trim
from .lexer import DirectiveReader, detect_check

_URL = "https://docs.docker.com/go/dockerfile/rule/"
MAX_WARNINGS = 5000
"""More than these of one file aren't kept."""
MAX_SUGGESTIONS = 20


@dataclass(frozen=True, slots=True)
class Rule:
    """A check.  experimental: off unless asked for."""

    name: str
    slug: str
    description: str
    experimental: bool = False

    @property
    def url(self) -> str:
        return f"{_URL}{self.slug}/" if self.slug else ""


STAGE_NAME_CASING = Rule("StageNameCasing", "stage-name-casing", "Stage names should be lowercase")
FROM_AS_CASING = Rule(
    "FromAsCasing", "from-as-casing", "The 'as' keyword should match the case of the 'from' keyword"
)
NO_EMPTY_CONTINUATION = Rule(
    "NoEmptyContinuation", "no-empty-continuation", "Empty continuation lines will become errors in a future release"
)
CONSISTENT_CASING = Rule(
    "ConsistentInstructionCasing",
    "consistent-instruction-casing",
    "All commands within the Dockerfile should use the same casing (either upper or lower)",
)
DUPLICATE_STAGE_NAME = Rule("DuplicateStageName", "duplicate-stage-name", "Stage names should be unique")
RESERVED_STAGE_NAME = Rule(
    "ReservedStageName", "reserved-stage-name", "Reserved words should not be used as stage names"
)
JSON_ARGS = Rule(
    "JSONArgsRecommended",
    "json-args-recommended",
    "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals",
)
MAINTAINER = Rule(
    "MaintainerDeprecated",
    "maintainer-deprecated",
    "The MAINTAINER instruction is deprecated, use a label instead to define an image author",
)
UNDEFINED_ARG_IN_FROM = Rule(
    "UndefinedArgInFrom", "undefined-arg-in-from", "FROM command must use declared ARGs"
)
WORKDIR_RELATIVE = Rule(
    "WorkdirRelativePath",
    "workdir-relative-path",
    "Relative workdir without an absolute workdir declared within the build can have unexpected results "
    "if the base image changes",
)
UNDEFINED_VAR = Rule("UndefinedVar", "undefined-var", "Variables should be defined before their use")
MULTIPLE_INSTRUCTIONS = Rule(
    "MultipleInstructionsDisallowed",
    "multiple-instructions-disallowed",
    "Multiple instructions of the same type should not be used in the same stage",
)
LEGACY_KEY_VALUE = Rule(
    "LegacyKeyValueFormat",
    "legacy-key-value-format",
    "Legacy key/value format with whitespace separator should not be used",
)
BASE_IMAGE_PLATFORM = Rule(
    "InvalidBaseImagePlatform", "", "Base image platform does not match expected target platform"
)
REDUNDANT_TARGET_PLATFORM = Rule(
    "RedundantTargetPlatform",
    "redundant-target-platform",
    "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
)
SECRETS_USED = Rule(
    "SecretsUsedInArgOrEnv",
    "secrets-used-in-arg-or-env",
    "Sensitive data should not be used in the ARG or ENV commands",
)
INVALID_DEFAULT_ARG = Rule(
    "InvalidDefaultArgInFrom",
    "invalid-default-arg-in-from",
    "Default value for global ARG results in an empty or invalid base image name",
)
CONST_PLATFORM = Rule(
    "FromPlatformFlagConstDisallowed",
    "from-platform-flag-const-disallowed",
    "FROM --platform flag should not use a constant value",
)
COPY_IGNORED = Rule(
    "CopyIgnoredFile", "copy-ignored-file", "Attempting to Copy file that is excluded by .dockerignore"
)
EXPOSE_PROTO = Rule(
    "ExposeProtoCasing", "expose-proto-casing", "Protocol in EXPOSE instruction should be lowercase"
)
EXPOSE_FORMAT = Rule(
    "ExposeInvalidFormat",
    "expose-invalid-format",
    "IP address and host-port mapping should not be used in EXPOSE instruction. "
    "This will become an error in a future release",
)
DEFINITION_DESCRIPTION = Rule(
    "InvalidDefinitionDescription",
    "invalid-definition-description",
    "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is "
    "not intended to be a description comment, add an empty line or comment between the instruction and the comment.",
    experimental=True,
)


@dataclass(frozen=True, slots=True)
class Checks:
    """``skip=A,B;error=true;experimental=C``."""

    skip_all: bool = False
    skip: frozenset[str] = frozenset()
    experimental_all: bool = False
    experimental: frozenset[str] = frozenset()
    error: bool = False

    def merged(self, other: Checks) -> Checks:
        """Both; ``error`` stays the file's."""
        return Checks(
            self.skip_all or other.skip_all, self.skip | other.skip,
            self.experimental_all or other.experimental_all, self.experimental | other.experimental, self.error,
        )  # fmt: skip


def parse_checks(text: str) -> Checks:
    """Read the value of ``# check=``.  Raises Fault."""
    text = trim(text)
    checks: dict[str, object] = {}
    for part in text.split(";", 2) if text else ():
        key, equals, value = part.partition("=")
        key, value = trim(key), trim(value)
        if not equals:
            raise Fault(f"failed to parse check options: invalid check option {quote(part)}", mark=part)
        if key in ("skip", "experimental"):
            if value == "all":
                checks[f"{key}_all"] = True
            else:
                checks[key] = frozenset(trim(rule) for rule in value.split(","))
        elif key == "error":
            try:
                checks["error"] = parse_bool(value)
            except ValueError as error:
                message = f"failed to parse check options: failed to parse check option {quote(part)}: {error}"
                raise Fault(message, mark=value) from None
        else:
            raise Fault(f"failed to parse check options: invalid check option {quote(key)}", mark=key)
    return Checks(**checks)  # type: ignore[arg-type]


def checks_of_text(text: str) -> Checks:
    """What a file's ``# check=`` asks for.  Raises Fault, with its place."""
    value, line = detect_check(text)
    with at(Location(line, line)):
        return parse_checks(value)


def checks_in_comments(comments: Iterable[str]) -> Checks | None:
    """The first ``check=…`` among an instruction's comments; one that can't be read changes nothing."""
    for comment in comments:
        if "=" not in comment:
            continue
        try:
            directive = DirectiveReader("").take(comment)
            if directive is not None and directive.name == "check":
                return parse_checks(directive.value.partition(" ")[0])
        except Fault:
            return None
    return None


@dataclass(slots=True)
class Linter:
    """Collects warnings.  ``for_comments`` gives a view with an instruction's own ``# check=`` merged in."""

    checks: Checks = Checks()
    warnings: list[Warning] = field(default_factory=list)

    def for_comments(self, comments: tuple[str, ...]) -> Linter:
        extra = checks_in_comments(comments) if comments else None
        return self if extra is None else Linter(self.checks.merged(extra), self.warnings)

    def wants(self, rule: Rule) -> bool:
        checks = self.checks
        if rule.experimental:
            return checks.experimental_all or rule.name in checks.experimental
        return not checks.skip_all and rule.name not in checks.skip

    def near(self, rule: Rule, name: str, options: Iterable[str]) -> str:
        """The name that was meant; only for the first warnings, since looking is work."""
        return nearest(name, options) if len(self.warnings) < MAX_SUGGESTIONS and self.wants(rule) else ""

    def warn(self, rule: Rule, message: str, location: Location | None) -> None:
        if self.wants(rule) and len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(Warning(rule.name, to_utf8(message), location, rule.url, rule.description))

    def failure(self) -> Fault | None:
        """With ``error=true``: warnings are an error."""
        if not self.checks.error or not self.warnings:
            return None
        rules = dict.fromkeys(warning.rule for warning in self.warnings)
        return Fault(f"lint violation found for rules: {', '.join(rules)}", self.warnings[0].location)
