#!/usr/bin/env bash
# Writes constraints.txt: the exact versions that CI installs, for Python 3.11 and 3.12 alike.
set -euo pipefail
cd "$(dirname "$0")/.."
# torch's own pins (CUDA libraries) are left to torch: they depend on the build that a machine installs.
uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
  --extra dev pyproject.toml |
  grep -E '^[A-Za-z0-9]' | grep -v -E '^(dsbs|nvidia-|cuda-|triton)' >constraints.txt
