#!/usr/bin/env bash
# Shows that the bounds in pyproject.toml are true: installs the lowest versions that it allows, or the newest there are,
# builds with the lowest or newest nanobind and scikit-build-core, and runs the tests.
#
#     tools/bounds.sh lowest python3.10 [pytest arguments]
#     tools/bounds.sh newest python3.14 [pytest arguments]
#
# Not run to its end yet; what it found on the way: typer 0.15 fails with today's click.
# ENV keeps the environment between runs. torch from the package index brings CUDA along: 5 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=$1 python=$2
shift 2
env=${ENV:-build/bounds-$kind}
[ -x "$env/bin/python" ] || "$python" -m venv "$env"
pip=("$env/bin/python" -m pip --disable-pip-version-check -q)
"${pip[@]}" install uv
python3 -c 'import sys, re; print(*re.findall(r"\"([^\"]+)\"", re.search(r"^requires = (.*)", open("pyproject.toml").read(), re.M)[1]), sep="\n")' \
  >"$env/build-requires.in"
resolution=$([ "$kind" = lowest ] && echo lowest-direct || echo highest)
SSL_CERT_FILE=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt} "$env/bin/uv" pip compile -q --no-header --no-annotate \
  --python "$env/bin/python" --resolution "$resolution" pyproject.toml "$env/build-requires.in" -o "$env/requirements"
"${pip[@]}" install -r "$env/requirements" ninja pytest pytest-timeout hypothesis
"${pip[@]}" install --no-deps --no-build-isolation -e . --config-settings=editable.rebuild=false
"$env/bin/python" -m pip list 2>/dev/null | grep -iE '^(torch|numpy|pillow|typer|rich|requests|safetensors|tifffile|tqdm|filelock|platformdirs|nanobind|scikit.build.core) '
"$env/bin/python" -c 'from mambair_cli.scan import cpu; assert not cpu.missing, cpu.missing'
"$env/bin/python" -m pytest -q "$@"
