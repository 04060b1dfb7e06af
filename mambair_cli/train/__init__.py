"""The trainer that made the bundled models."""
