"""Pictures through networks: what is asked for, one picture, many pictures."""
