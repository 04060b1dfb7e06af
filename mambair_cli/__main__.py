"""`python -m mambair_cli` and the console script."""

from __future__ import annotations


def main() -> None:
    from mambair_cli.cli.app import run

    run()


if __name__ == "__main__":
    main()
