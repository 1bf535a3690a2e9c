"""ocibuild: the command line client of ocibuildd, and a small typed Python library.

>>> import ocibuild
>>> with ocibuild.Client() as client:
...     result = client.build(".", tags=["app"], on_event=print)
...     client.push("app")

Nothing is imported until it is used, so that the command line starts fast.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .client import Client as Client
    from .errors import ApiError as ApiError
    from .errors import ClientError as ClientError
    from .errors import ConnectionFailed as ConnectionFailed

__version__ = "0.1.0"
__all__ = ["ApiError", "Client", "ClientError", "ConnectionFailed", "__version__"]


def __getattr__(name: str) -> object:
    if name == "Client":
        from .client import Client

        return Client
    if name in ("ApiError", "ClientError", "ConnectionFailed"):
        from . import errors

        return getattr(errors, name)
    raise AttributeError(f"module 'ocibuild' has no attribute {name!r}")
