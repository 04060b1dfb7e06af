#!/usr/bin/env bash
# Shows that the bounds in pyproject.toml are true: installs the lowest versions that it allows, or the newest there are,
# builds with the lowest or newest nanobind and scikit-build-core, and runs the tests.
#
#     tools/bounds.sh lowest python3.10 [pytest arguments]
#     tools/bounds.sh newest python3.14 [pytest arguments]
#
# ENV keeps the environment between runs. torch from the package index brings CUDA along: 5 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=$1 python=$2
shift 2
env=${ENV:-build/bounds-$kind}
[ -x "$env/bin/python" ] || "$python" -m venv "$env"
pip=("$env/bin/python" -m pip --disable-pip-version-check -q)
"${pip[@]}" install "$([ "$kind" = lowest ] && echo 'tomli>=2' || echo pip)" packaging

# Every requirement with >= as ==, where the lowest are asked for; those of the tests are only tools and stay.
"$env/bin/python" - "$kind" >"$env/requirements" 2>"$env/build-requirements" <<'PYTHON'
import sys
try:
    import tomllib
except ImportError:
    import tomli as tomllib
from packaging.requirements import Requirement

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)


def pinned(lines):
    for line in lines:
        requirement = Requirement(line)
        if sys.argv[1] == "lowest":
            requirement.specifier = type(requirement.specifier)(str(requirement.specifier).replace(">=", "=="))
        yield str(requirement)


print(*pinned(project["project"]["dependencies"]), sep="\n")
print(*pinned(project["build-system"]["requires"]), "ninja", sep="\n", file=sys.stderr)
PYTHON
"${pip[@]}" install -r "$env/requirements" -r "$env/build-requirements" pytest pytest-timeout hypothesis scikit-image \
  -c "$env/requirements"
"${pip[@]}" install --no-deps --no-build-isolation -e . --config-settings=editable.rebuild=false
"$env/bin/python" -m pip list 2>/dev/null | grep -iE '^(torch|numpy|pillow|typer|rich|requests|safetensors|tifffile|tqdm|filelock|platformdirs|nanobind|scikit.build.core) '
"$env/bin/python" -c 'from mambair_cli.scan import cpu; assert not cpu.missing, cpu.missing'
"$env/bin/python" -m pytest -q "$@"
