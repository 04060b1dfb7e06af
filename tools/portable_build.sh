#!/usr/bin/env bash
# Compiles the kernels with every compiler at hand for every machine they must go to, warnings being errors:
#
#     tools/portable_build.sh              all of: gcc clang mingw aarch64 aarch64-clang
#     tools/portable_build.sh clang mingw  some
#
# Debian: apt-get install g++ clang g++-mingw-w64-x86-64 g++-aarch64-linux-gnu. The door to Python (cpu.cpp) is compiled
# too, except for Windows, whose Python headers Debian does not have. macOS and clang-cl are left to CI.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
python=${PYTHON:-python3}
headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
nanobind=$("$python" -c 'import nanobind, pathlib; print(pathlib.Path(nanobind.__file__).parent)')
# The same options as in CMakeLists.txt, and every warning that means something.
options=(-std=c++17 -O3 -fno-math-errno -fno-trapping-math -Wno-psabi -Wall -Wextra -Wpedantic -Wno-unknown-pragmas -Werror)
avx2=(-mavx2 -mfma)
avx512=(-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma)

kernels() { # compiler, instruction set, options
  local compiler=$1 isa=$2 file
  shift 2
  # GCC 12 finds its own intrinsics uninitialised (its bug 105593).
  [[ $compiler == *clang* ]] || set -- "$@" -Wno-maybe-uninitialized -Wno-uninitialized
  for file in mambair_cli/scan/cpu_*.cpp; do
    $compiler "${options[@]}" "$@" -DMAMBAIR_ISA="$isa" -c "$file" -o "$out/$(basename "$file").$isa.o"
  done
}

door() { # compiler, options
  local compiler=$1
  shift
  # nanobind's own headers are somebody else's: no warnings from there
  $compiler "${options[@]}" "$@" -isystem "$nanobind/include" -isystem "$headers" -c mambair_cli/scan/cpu.cpp -o "$out/cpu.o"
}

x86() { # compiler
  kernels "$1" portable
  kernels "$1" avx2 "${avx2[@]}"
  kernels "$1" avx512 "${avx512[@]}"
}

build() {
  case $1 in
  gcc) x86 g++ && door g++ -DMAMBAIR_X86 -fPIC ;;
  clang) x86 clang++ && door clang++ -DMAMBAIR_X86 -fPIC ;;
  mingw)
    x86 x86_64-w64-mingw32-g++
    x86_64-w64-mingw32-g++ "${options[@]}" -DMAMBAIR_X86 -x c++ -fsyntax-only -include mambair_cli/scan/processor.hpp /dev/null
    ;;
  aarch64) kernels aarch64-linux-gnu-g++ portable && neon ;;
  aarch64-clang) kernels "clang++ --target=aarch64-linux-gnu" portable && neon ;;
  *) echo "$1 is none of gcc clang mingw aarch64 aarch64-clang" >&2 && return 2 ;;
  esac
}

neon() { # the vectors of the scan are NEON's, not pieces put together from single numbers
  local count
  count=$(aarch64-linux-gnu-objdump -d "$out/cpu_kernel.cpp.portable.o" | grep -cE '\bfml[as]\s+v[0-9]+\.4s')
  echo "aarch64: $count multiply-adds of four floats in the scan"
  [ "$count" -ge 50 ]
}

[ $# -gt 0 ] || set -- gcc clang mingw aarch64 aarch64-clang
for target in "$@"; do
  build "$target"
  echo "$target: no warnings"
done
