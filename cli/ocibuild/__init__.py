"""ocibuild: the command line client of ocibuildd."""

__version__ = "0.1.0"
