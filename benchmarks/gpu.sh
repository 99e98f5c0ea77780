#!/usr/bin/env bash
# Time the step with its peak memory, the loader with device rendering, and DAVIS on a CUDA machine, within 8 minutes.
# Writes one JSON file per benchmark to $OUT (default: ./benchmark-results). Photographs come from $DATA (default: the
# built-in samples, which need scikit-image). Runs from any folder of a checkout with selfpatch's dependencies.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-benchmark-results}
mkdir -p "$out"
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"

status=0
run() {  # run SECONDS_AT_MOST NAME OPTION...
    local limit=$1 name=$2
    shift 2
    echo "== $name"
    timeout "$limit" python -m "benchmarks.$name" --device cuda --out "$out/$name.json" "$@" || {
        echo "benchmarks.$name failed or took more than $limit s" >&2
        status=1
    }
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
run 210 step --batch-size 64 --seconds 30
run 150 loader --seconds 2 ${DATA:+--data "$DATA"}
run 100 davis --seconds 10
exit $status
