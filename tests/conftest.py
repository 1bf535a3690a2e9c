"""What every suite may use (``fixtures``)."""

from fixtures import (  # noqa: F401
    busybox_tar,
    context,
    daemon,
    debian_tar,
    make_daemon,
    registry,
    state_dir,
)
