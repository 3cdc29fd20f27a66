#!/usr/bin/env bash
# One binary for every torch: each wheel, built under one torch, is installed and run under the
# others, and one build is isolated as `pip install .` makes it. Own environments in build/abi;
# TORCH_VERSIONS names other torches.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python3}
read -ra versions <<< "${TORCH_VERSIONS:-2.14.1 2.13.0}"
work=$PWD/build/abi
check=$PWD/tests/abi/check.py
export PIP_DISABLE_PIP_VERSION_CHECK=1 FASTDW_CUDA=0

source_copy() { # Folder: the sources without anything that was built
    rm -rf "$1/fastdw"
    mkdir -p "$1"
    cp -rp setup.py pyproject.toml MANIFEST.in README.md LICENSE build_tools csrc kernels fastdw "$1"
    find "$1/fastdw" \( -name '*.so' -o -name __pycache__ \) -prune -exec rm -rf {} +
}

run_check() { # Environment: what is installed there, run from a folder without sources
    (cd "$work" && PYTHONDONTWRITEBYTECODE=1 "$1/bin/python" "$check")
}

for version in "${versions[@]}"; do
    environment=$work/torch-$version
    if [ ! -e "$environment/.created" ]; then
        echo "== environment with torch $version (a download of up to some GB)"
        "$python" -m venv "$environment"
        "$environment/bin/python" -m pip install --quiet \
            "torch==$version" 'setuptools>=77' wheel numpy typer rich
        touch "$environment/.created"
    fi
    echo "== building the wheel under torch $version"
    source_copy "$work/source-$version"
    rm -rf "$work/wheels-$version"
    "$environment/bin/python" -m pip wheel --quiet --no-build-isolation --no-deps \
        --wheel-dir "$work/wheels-$version" "$work/source-$version"
    ls "$work/wheels-$version"/fastdw-*-py3-none-*.whl
done

for runs in "${versions[@]}"; do
    for built in "${versions[@]}"; do
        "$work/torch-$runs/bin/python" -m pip install --quiet --no-deps --force-reinstall \
            "$work/wheels-$built"/fastdw-*.whl
        run_check "$work/torch-$runs"
    done
done

runs=${versions[-1]}
echo "== isolated pip install . into the environment with torch $runs (fetches the newest torch)"
source_copy "$work/source-isolated"
"$work/torch-$runs/bin/python" -m pip install --quiet --no-deps --force-reinstall \
    "$work/source-isolated"
run_check "$work/torch-$runs"
echo "== all right"
