"""The seccomp policy of a sandbox, compiled to BPF by ourselves (no libseccomp at run time)."""

from __future__ import annotations


def filter_bytes(arch: str, capabilities: frozenset[str]) -> bytes:
    """An array of ``struct sock_filter`` for ``seccomp(SECCOMP_SET_MODE_FILTER)``.

    arch: "x86_64" (also lets i386 programs run) or "aarch64" (also arm), as os.uname().machine.
    capabilities: the bounding set's names, such as "CAP_SYS_CHROOT".  Cached per argument pair.
    Raises Unsupported for another architecture.
    """
    raise NotImplementedError
