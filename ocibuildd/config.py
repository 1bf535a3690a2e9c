"""``ocibuildd.toml`` → a frozen Config.  Every setting is optional; a key that isn't known is
refused with its path and a suggestion.

Where it is looked for, first found wins: ``--config``, ``$OCIBUILDD_CONFIG``,
``$XDG_CONFIG_HOME/ocibuildd/ocibuildd.toml`` (``~/.config/…``), and for root also
``/etc/ocibuildd/ocibuildd.toml``.  Sizes are bytes or strings ("20GB", "512MiB"; GB = 10⁹, GiB =
2³⁰, a bare "g" = 2³⁰ as with Docker), durations are seconds or strings ("48h", "1m30s"), shares
of the disk are strings ("10%").
"""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from .errors import InvalidArgument
from .model.units import parse_duration, parse_size

MAX_BYTES = 1 << 20
"""A configuration file that is larger is a mistake."""


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """``[daemon]``.  Times are seconds; 0 = none, unless said otherwise.

    idle_timeout: a daemon that was started by the CLI or by socket activation ends after being
    idle for so long.  grace: how long running builds may go on after SIGTERM.
    """

    state_dir: str = ""
    socket: str = ""
    idle_timeout: float = 300.0
    grace: float = 60.0
    max_builds: int = 0
    max_parallelism: int = 0
    log_level: str = "info"


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """``[limits]``: for each step of a build; a request may lower them.  0 = none (pids: 0 =
    none)."""

    memory: int = 0
    memory_swap: int = 0
    pids: int = 0
    cpu_quota: int = 0
    cpu_period: int = 0
    io_weight: int = 0
    nofile: int = 0
    upper_bytes: int = 0
    step_timeout: float = 0.0
    build_timeout: float = 0.0
    log_bytes: int = 0
    context_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """``[sandbox]``.  no_new_privileges: setuid programs in steps don't elevate.
    ids, overlay, network: force a rung of the fallback ladder ("" = the best that works)."""

    no_new_privileges: bool = False
    ids: str = ""
    overlay: str = ""
    network: str = ""


@dataclass(frozen=True, slots=True)
class EntitlementsConfig:
    """``[entitlements]``: what clients may grant to a build at all."""

    allow: tuple[str, ...] = ("network.host",)


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """``[network]``: resolv.conf of steps; empty = the host's, made reachable from the sandbox."""

    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BuildConfig:
    """``[build]``: defaults of every build.  failed_ttl: how long the file system of a failed
    step is kept for ``ocibuild debug``.  history_ttl: how long the event log of an ended build is
    kept."""

    reproducible: bool = False
    compression: str = "gzip"
    compression_level: int = -1
    failed_ttl: float = 3600.0
    history_ttl: float = 7 * 86400.0
    history_max: int = 200


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """``[registry."host[:port]"]``.  mirrors: ``host[:port][/prefix]``, tried in order before the
    host. http: plain HTTP is allowed; insecure: certificates aren't checked.  ca, cert, key: PEM
    files."""

    mirrors: tuple[str, ...] = ()
    location: str = ""
    http: bool = False
    insecure: bool = False
    blocked: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class GcPolicy:
    """``[[gc.policy]]`` in BuildKit's terms: a record goes when it is older than
    ``keep_duration`` or when the space that the policy looks at is over ``max_used_space`` or the
    disk's free space is under ``min_free_space``, but never below ``reserved_space``.  Spaces are
    bytes or a share ("10%") of the disk. filters: ``type==exec.cachemount`` and the like; all =
    internal and shared records too."""

    all: bool = False
    keep_duration: float = 0.0
    reserved_space: int | str = 0
    max_used_space: int | str = 0
    min_free_space: int | str = 0
    filters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GcConfig:
    """``[gc]``.  ceiling: no more than this is ever allocated (0 = 80 % of the disk); interval:
    seconds between passes; ballast: bytes that are kept aside for a full disk."""

    enabled: bool = True
    interval: float = 600.0
    ceiling: int | str = 0
    ballast: int = 16 << 20
    policy: tuple[GcPolicy, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """All settings; ``path`` is the file they came from, None for the defaults."""

    daemon: DaemonConfig = DaemonConfig()
    sandbox: SandboxConfig = SandboxConfig()
    limits: LimitsConfig = LimitsConfig()
    entitlements: EntitlementsConfig = EntitlementsConfig()
    network: NetworkConfig = NetworkConfig()
    build: BuildConfig = BuildConfig()
    gc: GcConfig = GcConfig()
    registry: Mapping[str, RegistryConfig] = field(default_factory=dict)
    path: Path | None = None


Parse = Callable[[str, Any], Any]


def _fail(path: str, found: object, wanted: str) -> InvalidArgument:
    return InvalidArgument(f"config: {path} is {found!r}, expected {wanted}")


def _boolean(path: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _fail(path, value, "true or false")
    return value


def _integer(path: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < 1 << 62:
        raise _fail(path, value, "a whole number")
    return value


def _text(path: str, value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise _fail(path, value, "a string")
    return value


def _texts(path: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _fail(path, value, "a list of strings")
    return tuple(_text(f"{path}[{index}]", item) for index, item in enumerate(value))


def _size(path: str, value: Any) -> int:
    try:
        return parse_size(value)
    except ValueError:
        raise _fail(path, value, 'a size in bytes or a string such as "20GB"') from None


def _space(path: str, value: Any) -> int | str:
    if isinstance(value, str) and value.endswith("%"):
        number = value[:-1].strip()
        if number.isdecimal() and 0 <= int(number) <= 100:
            return f"{int(number)}%"
        raise _fail(path, value, 'a share between "0%" and "100%"')
    return _size(path, value)


def _seconds(path: str, value: Any) -> float:
    try:
        return parse_duration(value)
    except ValueError:
        raise _fail(path, value, 'seconds or a string such as "1h30m"') from None


def _one_of(*words: str) -> Parse:
    def parse(path: str, value: Any) -> str:
        if value not in words:
            raise _fail(path, value, "one of " + ", ".join(repr(word) for word in words if word))
        return str(value)

    return parse


def _addresses(path: str, value: Any) -> tuple[str, ...]:
    """Name servers: a resolv.conf has addresses only (resolv.conf(5))."""
    found = _texts(path, value)
    for index, text in enumerate(found):
        try:
            ipaddress.ip_address(text)
        except ValueError:
            raise _fail(f"{path}[{index}]", text, "an IP address") from None
    return found


def _host(text: str) -> str:
    """The ``host[:port]`` that a ``[registry."…"]`` table is for: the first part of image names."""
    if not text or "/" in text or any(sign.isspace() for sign in text):
        raise _fail("the name of a registry table", text, "host[:port], without http:// or a path")
    return text


def _place(path: str, value: Any) -> str:
    """``host[:port][/prefix]`` of a registry; http or https is what ``http`` says."""
    text = _text(path, value)
    if "://" in text or text.startswith("/") or any(sign.isspace() for sign in text):
        raise _fail(path, value, "host[:port][/prefix], without http:// or https://")
    return text


def _places(path: str, value: Any) -> tuple[str, ...]:
    return tuple(_place(f"{path}[{i}]", item) for i, item in enumerate(_texts(path, value)))


def _filters(path: str, value: Any) -> tuple[str, ...]:
    """Of a collection policy; one that can't be read would keep all collection from happening."""
    found = _texts(path, value)
    if found:
        from .store.policy import Policy

        try:
            Policy("config", filters=found).matcher(0)
        except InvalidArgument as error:
            raise InvalidArgument(f"config: {path}: {error.message}", hint=error.hint) from None
    return found


_BY_TYPE: dict[str, Parse] = {
    "bool": _boolean, "int": _integer, "str": _text, "float": _seconds,
    "tuple[str, ...]": _texts, "int | str": _space,
}
_BY_NAME: dict[tuple[type, str], Parse] = {
    (DaemonConfig, "log_level"): _one_of("debug", "info", "warning", "error"),
    (SandboxConfig, "ids"): _one_of("", "shifted", "identity", "single"),
    (SandboxConfig, "overlay"): _one_of("", "kernel", "fuse", "copy"),
    (SandboxConfig, "network"): _one_of("", "pasta", "slirp4netns", "host", "none"),
    (BuildConfig, "compression"): _one_of("gzip", "zstd", "none"),
    (LimitsConfig, "memory"): _size,
    (LimitsConfig, "memory_swap"): _size,
    (LimitsConfig, "upper_bytes"): _size,
    (LimitsConfig, "log_bytes"): _size,
    (LimitsConfig, "context_bytes"): _size,
    (GcConfig, "ballast"): _size,
    (GcPolicy, "filters"): _filters,
    (NetworkConfig, "dns"): _addresses,
    (RegistryConfig, "mirrors"): _places,
    (RegistryConfig, "location"): _place,
}
_SECTIONS: dict[str, type] = {
    "daemon": DaemonConfig, "sandbox": SandboxConfig, "limits": LimitsConfig,
    "entitlements": EntitlementsConfig, "network": NetworkConfig, "build": BuildConfig,
    "gc": GcConfig,
}
ENTITLEMENTS = ("network.host", "security.insecure")


def _check_keys(path: str, found: Mapping[str, Any], known: list[str]) -> None:
    for key in found:
        if key not in known:
            where = f"{path}.{key}" if path else key
            close = difflib.get_close_matches(key, known, n=1)
            known_here = "known here: " + ", ".join(sorted(known))
            hint = f"did you mean {close[0]!r}?" if close else known_here
            raise InvalidArgument(f"config: unknown key {where}", hint=hint)


def _table(path: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _fail(path, value, "a table")
    return value


def _policies(path: str, value: Any) -> tuple[GcPolicy, ...]:
    if not isinstance(value, list):
        raise _fail(path, value, "a list of tables ([[gc.policy]])")
    return tuple(_section(f"{path}[{index}]", GcPolicy, item) for index, item in enumerate(value))


def _section(path: str, kind: type, value: Any) -> Any:
    """One table as the dataclass ``kind``."""
    table = _table(path, value)
    known = {item.name: str(item.type) for item in fields(kind)}
    _check_keys(path, table, list(known))
    parsed = {}
    for key, item in table.items():
        if (kind, key) == (GcConfig, "policy"):
            parsed[key] = _policies(f"{path}.{key}", item)
            continue
        parse = _BY_NAME.get((kind, key)) or _BY_TYPE[known[key]]
        parsed[key] = parse(f"{path}.{key}", item)
    return kind(**parsed)


def _check_level(build: BuildConfig) -> None:
    from .export.options import LEVELS

    highest = LEVELS[build.compression]
    if build.compression_level > highest:
        wanted = f"-1 to {highest} for {build.compression}"
        raise _fail("build.compression_level", build.compression_level, wanted)


def from_dict(data: Mapping[str, Any], path: Path | None = None) -> Config:
    """A decoded TOML document as a Config.  Raises InvalidArgument naming the key."""
    _check_keys("", data, [*_SECTIONS, "registry"])
    sections = {
        name: _section(name, kind, data[name]) for name, kind in _SECTIONS.items() if name in data
    }
    registries = {
        _host(host): _section(f'registry."{host}"', RegistryConfig, table)
        for host, table in _table("registry", data.get("registry", {})).items()
    }
    config = Config(**sections, registry=registries, path=path)
    _check_level(config.build)
    for word in config.entitlements.allow:
        if word not in ENTITLEMENTS:
            raise _fail("entitlements.allow", word, "one of " + ", ".join(ENTITLEMENTS))
    return config


def at_next_start(old: Config, new: Config) -> list[str]:
    """Which settings that a running daemon can't take over differ: where it is, what its sandboxes stand on."""
    keys = (
        "daemon.state_dir", "daemon.socket", "sandbox.ids", "sandbox.overlay", "sandbox.network",
        "gc.ballast",
    )
    return [key for key in keys if attrgetter(key)(old) != attrgetter(key)(new)]


def default_paths(environ: Mapping[str, str] | None = None, uid: int | None = None) -> list[Path]:
    """Where a configuration is looked for, in order."""
    environ = os.environ if environ is None else environ
    uid = os.geteuid() if uid is None else uid
    home = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME") or "/", ".config")
    found = [Path(home, "ocibuildd", "ocibuildd.toml")]
    if uid == 0:
        found.append(Path("/etc/ocibuildd/ocibuildd.toml"))
    return found


def load(explicit: str | None = None) -> Config:
    """Read the configuration.  ``explicit`` (or $OCIBUILDD_CONFIG) must exist; the defaults need
    not.

    Raises InvalidArgument (with file, and line for TOML errors) and NotFound-like
    InvalidArgument."""
    explicit = explicit or os.environ.get("OCIBUILDD_CONFIG")
    for path in [Path(explicit)] if explicit else default_paths():
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            if explicit:
                raise InvalidArgument(f"config: {path} does not exist") from None
            continue
        except OSError as error:
            raise InvalidArgument(f"config: can't read {path}: {error.strerror}") from None
        if len(data) > MAX_BYTES:
            raise InvalidArgument(f"config: {path} is larger than {MAX_BYTES} bytes")
        return parse(data, path)
    return Config()


def parse(data: bytes, path: Path | None = None) -> Config:
    """TOML bytes as a Config.  Raises InvalidArgument."""
    import tomllib

    try:
        decoded = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"config: {path}: {error}") from None
    try:
        return from_dict(decoded, path)
    except InvalidArgument as error:
        where = f" ({path})" if path else ""
        raise InvalidArgument(error.message + where, hint=error.hint) from None
