"""Work spread over processes and machines: what a team of workers is, who leads it, and what runs it."""
