"""Pictures in files: read whole, with all that belongs to them, and written back the same."""

from mambair_cli.images.decode import Frame, Picture, read

__all__ = ["Frame", "Picture", "read"]
