#!/usr/bin/env bash
# Shows that the bounds in pyproject.toml are true: installs the lowest versions that it allows, or the newest there are,
# builds with the lowest or newest nanobind and scikit-build-core, and runs the tests.
#
#     tools/bounds.sh lowest python3.10 [pytest arguments]
#     tools/bounds.sh newest python3.14 [pytest arguments]
#
# With the extras that the tests use. `export` asks for a newer torch than the lowest, so it is left to the newest; what
# only tests use is the newest that goes with the rest.
# Seen green: the lowest with Python 3.10 (Triton 3.0 lacks what the kernels' tests need, which they say), the newest with
# 3.13 and 3.14.
# ENV keeps the environment between runs. torch from the package index brings CUDA along: 5 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=$1 python=$2
shift 2
env=${ENV:-build/bounds-$kind}
[ -x "$env/bin/python" ] || "$python" -m venv "$env"
pip=("$env/bin/python" -m pip --disable-pip-version-check -q)
"${pip[@]}" install uv tomli
"$env/bin/python" - "$kind" "$env" <<'PYTHON'
import sys
import tomli
from pathlib import Path

kind, env = sys.argv[1], Path(sys.argv[2])
stated = tomli.loads(Path("pyproject.toml").read_text())
tests = stated["project"]["optional-dependencies"]["test"]
ours = next(one for one in tests if one.startswith("mambair["))
extras = [one for one in ours[len("mambair[") : -1].split(",") if kind == "newest" or one != "export"]
(env / "extras").write_text(",".join(extras))
(env / "build.in").write_text("\n".join([*stated["build-system"]["requires"], "cmake>=3.21", "ninja>=1.11"]))
# Triton comes with torch, and spandrel wants torchvision: tests/test_spandrel.py says why it does without.
(env / "tests.in").write_text("\n".join(one for one in tests if one != ours and not one.startswith("triton")))
PYTHON
export SSL_CERT_FILE=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
resolve() { "$env/bin/uv" pip compile -q --no-header --no-annotate --python "$env/bin/python" "$@"; }
extras=()
for extra in $(tr , ' ' <"$env/extras"); do extras+=(--extra "$extra"); done
resolve --resolution "$([ "$kind" = lowest ] && echo lowest-direct || echo highest)" "${extras[@]}" \
  pyproject.toml "$env/build.in" -o "$env/requirements"
resolve -c "$env/requirements" "$env/tests.in" -o "$env/test-requirements"
"${pip[@]}" install -r "$env/requirements" -r "$env/test-requirements"
"${pip[@]}" install --no-deps spandrel einops
"${pip[@]}" install --no-deps --no-build-isolation -e . --config-settings=editable.rebuild=false
"$env/bin/python" -VV
"$env/bin/python" -m pip list --format=freeze 2>/dev/null | paste -sd ' '
"$env/bin/python" -c 'from mambair_cli.scan import cpu; assert not cpu.missing, cpu.missing'
"$env/bin/python" -m pytest -q "$@"
