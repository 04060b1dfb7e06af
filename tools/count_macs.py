"""The `macs` of weights.toml, counted on the networks: what is there and what it should be. Status 1 if they differ.

python tools/count_macs.py [MODEL...]
"""

import sys

from mambair_cli.models import zoo
from mambair_cli.speed.count import count_model


def main() -> int:
    """Count every model named, or all."""
    wrong = 0
    for name in sys.argv[1:] or zoo.zoo():
        spec = zoo.find(name)
        counted = count_model(spec)
        wrong += counted != spec.macs
        print(f"{spec.name}\t{list(counted)}\t{'ok' if counted == spec.macs else f'not {spec.macs}'}", flush=True)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
