"""``login`` and ``logout``."""

from __future__ import annotations

import sys

from ..errors import ClientError, UsageError
from . import arguments, client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..types import Auth


def login(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild login [OPTIONS] [REGISTRY]

    Check a user name and password with a registry (default: Docker Hub), and keep them where
    docker does: its config.json, or the credential helper that it names.

    Options:
      -u, --username NAME      The user name
      -p, --password PASSWORD  The password (better: --password-stdin)
      --password-stdin         Read the password from standard input
      -h, --help               Print this
    """
    args = arguments(login, argv, most=1)
    registry = args.rest[0] if args.rest else "docker.io"
    from .. import credentials

    host = credentials.normal_key(registry)
    user, password = args.username, args.password
    if args.password_stdin:
        if password:
            raise UsageError("--password and --password-stdin are mutually exclusive")
        if not user:
            raise UsageError("--password-stdin needs --username")
        password = sys.stdin.read().rstrip("\r\n")
    elif password:
        print("WARNING: --password is seen by others; use --password-stdin", file=sys.stderr)
    if not user or not password:
        user, password = _ask(host, user)
    with client() as daemon:
        answer = daemon.login(host, {"username": user, "password": password})
    auth: Auth = {"username": user, "password": password}
    if answer.get("identity_token"):
        auth = {"username": user, "identity_token": str(answer["identity_token"])}
    where = credentials.store(host, auth)
    print(f"Login Succeeded (kept in {where})")


def _ask(host: str, user: str) -> tuple[str, str]:
    if not sys.stdin.isatty():
        raise ClientError("no terminal to ask on", "use --username and --password-stdin")
    import getpass

    if not user:
        print(f"Username for {host}: ", end="", file=sys.stderr, flush=True)
        user = sys.stdin.readline().strip()
    return user, getpass.getpass("Password: ")


def logout(argv: Sequence[str]) -> None:
    """
    Usage:  ocibuild logout [REGISTRY]

    Forget the credentials of a registry (default: Docker Hub).

    Options:
      -h, --help  Print this
    """
    args = arguments(logout, argv, most=1)
    from .. import credentials

    host = credentials.normal_key(args.rest[0] if args.rest else "docker.io")
    print(f"Removing login credentials for {host}")
    if not credentials.erase(host):
        print(f"Not logged in to {host}", file=sys.stderr)
