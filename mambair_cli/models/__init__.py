"""The models there are, their files, and how these become networks."""
