"""`mambair serve`: a page and an HTTP interface on the engine of the command line."""
