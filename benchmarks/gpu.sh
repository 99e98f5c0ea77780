#!/usr/bin/env bash
# Run the tests that need CUDA, the benchmarks of training and, if given, a study, on a machine with a GPU and without
# network: within 9 minutes on one H200 with 16 cores. Works from a checkout with the packages of pyproject.toml.
#
#   benchmarks/gpu.sh                                         JSON files in $OUT (default: benchmark-results)
#   benchmarks/gpu.sh --study STUDY.yaml --data FOLDER        and a study in the time that is left
#   DEVICE=cpu SIZE=tiny benchmarks/gpu.sh                    try the script itself in two minutes
#   benchmarks/gpu.sh --only step loader                      these parts alone
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="src:.${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if command -v nvidia-smi > /dev/null; then
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
fi
exec "${PYTHON:-python3}" -m benchmarks.gpu \
    --device "${DEVICE:-cuda}" --size "${SIZE:-full}" --out "${OUT:-benchmark-results}" "$@"
