"""What every suite may use (``fixtures``)."""

from fixtures import (  # noqa: F401
    busybox_tar,
    context,
    daemon,
    debian_tar,
    end_daemons,
    make_daemon,
    registry,
    state_dir,
)
from hypothesis import settings

# No example database: the suite also runs in a tree that its user may not write to.  No deadline: machines differ.
settings.register_profile("ocibuildd", database=None, deadline=None)
settings.load_profile("ocibuildd")
