#!/usr/bin/env bash
# The tests of this folder, or those named, under AddressSanitizer and UndefinedBehaviorSanitizer:
# sanitize.sh [TEST...]. Leaks are not looked for: Python and torch keep what they allocate.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
CXX=${CXX:-g++}
asan=$($CXX -print-file-name=libasan.so)
ubsan=$($CXX -print-file-name=libubsan.so)
if [ "$asan" = libasan.so ] || [ "$ubsan" = libubsan.so ]; then
    echo "$CXX has no AddressSanitizer: sudo apt-get install g++ (or name a compiler in CXX)"
    exit 1
fi
export CXX FASTDW_SANITIZE=1

echo "== building instrumented libraries"
"$python" tests/cuda_on_host/build.py

export ASAN_OPTIONS=detect_leaks=0:alloc_dealloc_mismatch=0:detect_odr_violation=0
export UBSAN_OPTIONS=print_stacktrace=1
export LD_PRELOAD="$asan:$ubsan" OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1
exec "$python" -m pytest -p no:cacheprovider "${@:-tests/cuda_on_host}"
