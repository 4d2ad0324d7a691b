#!/usr/bin/env bash
# Runs the tests on the lowest versions that pyproject.toml allows, in an environment of its own.
#   scripts/test_lowest.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.cache/lowest
uv venv --quiet --clear --python 3.11 "$venv"
uv pip install --quiet --python "$venv" --resolution lowest-direct --editable '.[test,parity]'
"$venv/bin/python" -m pytest "$@"
