"""Pictures in files: read whole, with all that belongs to them, and written back the same."""
