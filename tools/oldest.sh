#!/usr/bin/env bash
# The tests with the oldest versions that pyproject.toml allows, in an environment of its own: tools/oldest.sh [FOLDER [pytest's arguments]]
#
# What we name is as old as it may be; what those packages need is as new as it may be, but for pyarrow. It needs uv, and
# torch comes with several gigabytes of CUDA. What an old version cannot do is listed in tests/support/oldest.py: such tests are skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=${1:-.venv-oldest}
shift || true
old=$(mktemp -d)
trap 'rm -rf "$old"' EXIT
echo 'pyarrow<22' > "$old/with.txt"   # TransformerLens 2 needs NumPy 1, and newer ones NumPy 2
uv venv -q --clear -p 3.11 "$folder"
uv pip compile -q --resolution lowest-direct --python-version 3.11 --extra dev -c "$old/with.txt" pyproject.toml -o "$old/oldest.txt"
uv pip install -q -p "$folder/bin/python" -r "$old/oldest.txt"
uv pip install -q -p "$folder/bin/python" --no-deps -e .
folder=$(realpath "$folder")
PATH="$folder/bin:$PATH" PYTHONPATH=$PWD "$folder/bin/python" -m pytest -q -n 2 -rs "$@"
