"""ocibuildd: a rootless OCI image builder daemon for Linux."""

__version__ = "0.1.0"
