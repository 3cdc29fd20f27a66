#!/usr/bin/env bash
# The op tests under AddressSanitizer and UndefinedBehaviorSanitizer, once: run.sh BUILD_FOLDER [TEST...]
# A copy of the package with an instrumented library is built in BUILD_FOLDER; the checkout's own
# library stays as it is. Leaks are not looked for: Python and torch keep what they allocate.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
build=$1
shift
tests=("$@")
if [ ${#tests[@]} -eq 0 ]; then
    for op in csrc/cpu/*.cpp; do
        test=tests/test_$(basename "$op" .cpp).py
        if [ -f "$test" ]; then tests+=("$test"); fi
    done
    tests+=(tests/test_planned_joins.py tests/test_squeeze_excite.py)
fi

CXX=${CXX:-g++}
asan=$($CXX -print-file-name=libasan.so)
ubsan=$($CXX -print-file-name=libubsan.so)
if [ "$asan" = libasan.so ] || [ "$ubsan" = libubsan.so ]; then
    echo "$CXX has no AddressSanitizer: sudo apt-get install g++ (or name a compiler in CXX)"
    exit 1
fi

echo "== building an instrumented copy in $build"
mkdir -p "$build"
rm -rf "$build/fastdw"
# Files keep their times, so that a second run compiles only what has changed.
cp -rp setup.py pyproject.toml MANIFEST.in README.md LICENSE build_tools csrc kernels fastdw "$build"
find "$build/fastdw" \( -name '*.so' -o -name __pycache__ \) -prune -exec rm -rf {} +
export CXX FASTDW_CUDA=0
export CXXFLAGS="-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined"
LDFLAGS="-fsanitize=address,undefined" \
    bash -c "cd '$build' && '$python' setup.py --quiet build_ext --inplace"

# From inside the copy, so that it and not the installed package is imported.
tests=("${tests[@]/#/$PWD/}")
cd "$build"
export ASAN_OPTIONS=detect_leaks=0:alloc_dealloc_mismatch=0:detect_odr_violation=0
export UBSAN_OPTIONS=print_stacktrace=1
export LD_PRELOAD="$asan:$ubsan" OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1
loaded=$("$python" -c 'from fastdw import native; native.load(); print(native.library_path())')
case $loaded in
    "$PWD"/*) echo "== testing $loaded" ;;
    *) echo "$loaded was loaded, not the instrumented library"; exit 1 ;;
esac
exec "$python" -m pytest -p no:cacheprovider "${tests[@]}"
