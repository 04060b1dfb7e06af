#!/usr/bin/env bash
# Runs the tests of the scan on 64-bit ARM: the kernels cross-compiled, Python, torch and numpy as they are published
# for that machine, all under qemu's user emulation. No root rights, no container; about 500 MB and an hour.
#
#     tools/qemu_aarch64.sh [pytest arguments]     default: the tests of the scan and of what stands around it
#
# Seen: states are four floats wide. Not with torch 2.4: where the processor multiplies in bfloat16, as qemu's does, its
# float32 `bmm` does so too (https://github.com/pytorch/pytorch/pull/130919), without a word of ours:
#     x, y = torch.randn(8, 3, 60), torch.randn(8, 60, 5); ((x @ y) - (x.double() @ y.double())).abs().max()
# 2.4.0 is 2e-3 of the largest product off, 1e-7 with `-cpu neoverse-n1`, which has no bfloat16; 2.5.0 is 1e-7 with both.
# Debian 12: apt-get install g++-aarch64-linux-gnu qemu-user cmake, and pip install nanobind; ROOT keeps what
# was fetched between runs.
set -euo pipefail
cd "$(dirname "$0")/.."
root=${ROOT:-build/aarch64}
torch=${TORCH:-2.5.0} # the lowest that pyproject.toml allows on this machine
mkdir -p "$root"
root=$(realpath "$root")
tests=("$@")
[ $# -gt 0 ] || tests=(tests/test_scan.py tests/test_backends.py tests/test_orders.py tests/test_fused.py tests/test_inference_ops.py)

if [ ! -e "$root/usr/bin/python3.11" ]; then # Debian's Python 3.11 and the libraries under it
  pool=http://deb.debian.org/debian
  curl -fsS $pool/dists/bookworm/main/binary-arm64/Packages.xz | xz -dc >"$root/Packages"
  for package in libc6 libgcc-s1 libstdc++6 libgomp1 libexpat1 zlib1g libssl3 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 \
    libuuid1 libpython3.11-minimal libpython3.11-stdlib python3.11-minimal libpython3.11-dev libncursesw6 libtinfo6; do
    file=$(awk -v p="$package" '$1 == "Package:" { on = $2 == p } on && $1 == "Filename:" { print $2; exit }' "$root/Packages")
    curl -fsS "$pool/$file" -o "$root/package.deb"
    dpkg-deb -x "$root/package.deb" "$root"
  done
fi
site=$root/site
if [ ! -d "$site/torch" ]; then
  fetch=(python3 -m pip install -q --target "$site" --only-binary=:all: --python-version 3.11 --implementation cp
    --platform manylinux2014_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux_2_28_aarch64)
  "${fetch[@]}" --no-deps "torch==$torch" "numpy<2.3"
  "${fetch[@]}" filelock typing-extensions sympy networkx jinja2 fsspec pytest pytest-timeout hypothesis pillow \
    platformdirs requests rich safetensors tifffile tqdm typer
fi

cmake=$(python3 -c 'import nanobind; print(nanobind.cmake_dir())')
cmake -S . -B "$root/build" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -Dnanobind_ROOT="$cmake" \
  -DPython_EXECUTABLE="$(command -v python3)" -DPython_INCLUDE_DIR="$root/usr/include/python3.11" \
  -DCMAKE_CXX_FLAGS="-I$root/usr/include" >"$root/cmake.log"
nice cmake --build "$root/build" >>"$root/cmake.log"
package=$root/package/mambair_cli
rm -rf "$root/package" && mkdir -p "$root/package"
cp -r mambair_cli "$package" && find "$package" -name '*.so' -delete
cp weights.toml "$package/" && cp "$root"/build/_cpu*.so "$package/scan/_cpu.so"
file "$package/scan/_cpu.so" | grep -q 'ARM aarch64'

# From another folder: here Python would find the package of the checkout, without this extension.
here=$PWD
cd "$root"
nice qemu-aarch64 -cpu max -L "$root" \
  -E "LD_LIBRARY_PATH=$root/usr/lib/aarch64-linux-gnu:$root/lib/aarch64-linux-gnu" \
  -E "PYTHONPATH=$root/package:$site" -E "PYTHONHOME=$root/usr" -E OMP_NUM_THREADS=1 "$root/usr/bin/python3.11" - \
  "${tests[@]/#tests/$here/tests}" <<'PYTHON'
import platform
import sys

import pytest
from mambair_cli.scan import _cpu, backends

print(platform.machine(), _cpu.instruction_sets(), [b.reason for b in backends() if b.available], flush=True)
assert platform.machine() == "aarch64"
assert _cpu.kept_size(1, 1, 1, 1, 1) == 4, "states are kept as vectors, of four floats on NEON"
sys.exit(pytest.main(["-p", "no:cacheprovider", "-q", "-rs", "--timeout=0", *sys.argv[1:]]))
PYTHON
