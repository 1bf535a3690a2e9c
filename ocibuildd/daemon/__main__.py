"""``python -m ocibuildd.daemon``."""

from __future__ import annotations

import sys

from . import main

sys.exit(main())
