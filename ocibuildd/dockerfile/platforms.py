"""Platform specifiers: ``os[/arch[/variant]]`` and ``os(version+feature)/arch``, as containerd reads them."""

from __future__ import annotations

import re
from urllib.parse import unquote

from ..model.oci import Platform

_PART = re.compile(r"[A-Za-z0-9_.-]+\Z")
_OS = re.compile(r"([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.%-]*)((?:\+[A-Za-z0-9_.%-]+)*)\))?\Z")
_KNOWN_OS = frozenset({
    "aix", "android", "darwin", "dragonfly", "freebsd", "hurd", "illumos", "ios", "js", "linux", "nacl",
    "netbsd", "openbsd", "plan9", "solaris", "windows", "zos",
})  # fmt: skip
_KNOWN_ARCH = frozenset({
    "386", "amd64", "amd64p32", "arm", "armbe", "arm64", "arm64be", "ppc64", "ppc64le", "loong64", "mips",
    "mipsle", "mips64", "mips64le", "mips64p32", "mips64p32le", "ppc", "riscv", "riscv64", "s390", "s390x",
    "sparc", "sparc64", "wasm",
})  # fmt: skip
_ENCODE = str.maketrans({"%": "%25", "+": "%2B", "(": "%28", ")": "%29", "/": "%2F"})


def normalize_arch(arch: str, variant: str) -> tuple[str, str]:
    """Go's names: x86_64 → amd64, aarch64 → arm64, armhf → arm/v7."""
    arch, variant = arch.lower(), variant.lower()
    match arch:
        case "i386":
            return "386", ""
        case "x86_64" | "x86-64" | "amd64":
            return "amd64", "" if variant == "v1" else variant
        case "aarch64" | "arm64":
            return "arm64", "" if variant in ("8", "v8") else variant
        case "armhf":
            return "arm", "v7"
        case "armel":
            return "arm", "v6"
        case "arm":
            if variant in ("", "7"):
                variant = "v7"
            return "arm", f"v{variant}" if variant in ("5", "6", "8") else variant
    return arch, variant


def normalize(platform: Platform) -> Platform:
    """The same platform in Go's names."""
    arch, variant = normalize_arch(platform.architecture, platform.variant)
    os_name = platform.os.lower()
    return Platform(
        arch, "darwin" if os_name == "macos" else os_name, platform.os_version,
        tuple(sorted(set(platform.os_features))), variant,
    )  # fmt: skip


def parse_platform(text: str, default: Platform) -> Platform:
    """Read a specifier; what it leaves open is the ``default``'s.  Raises ValueError in containerd's words."""
    if "*" in text:
        raise ValueError(f'"{text}": wildcards not yet supported: invalid argument')
    parts = text.split("/", 3)
    found = _OS.match(parts[0])
    if found is None:
        raise ValueError(
            f'"{parts[0]}" is an invalid OS component of "{text}": OSAndVersion specifier component must match '
            f'"^([A-Za-z0-9_-]+)(?:\\\\(([A-Za-z0-9_.%-]*)((?:\\\\+[A-Za-z0-9_.%-]+)*)\\\\))?$": invalid argument'
        )
    for part in parts[1:]:
        if not _PART.match(part):
            raise ValueError(
                f'"{part}" is an invalid component of "{text}": platform specifier component must match '
                f'"^[A-Za-z0-9_.-]+$": invalid argument'
            )
    os_name = found[1].lower()
    os_name = "darwin" if os_name == "macos" else os_name
    version = unquote(found[2] or "")
    features = tuple(unquote(feature) for feature in (found[3] or "").split("+") if feature)
    if len(parts) == 1:
        if os_name in _KNOWN_OS:
            return Platform(default.architecture, os_name, version, features, default.variant)
        arch, variant = normalize_arch(parts[0], "")
        if arch not in _KNOWN_ARCH:
            raise ValueError(f'"{text}": unknown operating system or architecture: invalid argument')
        return Platform(arch, default.os, "", (), "" if (arch, variant) == ("arm", "v7") else variant)
    if len(parts) == 2:
        arch, variant = normalize_arch(parts[1], "")
        return Platform(arch, os_name, version, features, "" if (arch, variant) == ("arm", "v7") else variant)
    if len(parts) == 3:
        arch, variant = normalize_arch(parts[1], parts[2])
        return Platform(arch, os_name, version, features, "v8" if arch == "arm64" and not variant else variant)
    raise ValueError(f'"{text}": cannot parse platform specifier: invalid argument')


def format_all(platform: Platform) -> str:
    """``linux/amd64``, ``windows(10.0.17763)/amd64``: with version and features of the system."""
    if not platform.os:
        return "unknown"
    extra = "".join(
        [platform.os_version.translate(_ENCODE), *("+" + f.translate(_ENCODE) for f in sorted(platform.os_features))]
    )
    system = f"{platform.os}({extra})" if extra else platform.os
    return "/".join(part for part in (system, platform.architecture, platform.variant) if part)
