"""Programs of Slurm for tests: jobs of one task start at once on this machine."""

from __future__ import annotations

import os
from pathlib import Path

PROGRAMS = {
    "sbatch": """
        id=$(($(ls {root} | grep -c '[.]sh$') + 101))
        cp "$1" {root}/$id.sh
        export SLURM_JOB_ID=$id SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_PROCID=0 SLURM_LOCALID=0
        (sh {root}/$id.sh; touch {root}/$id.ended) > /dev/null 2>&1 &
        echo "Submitted batch job $id"
    """,
    "srun": """
        while [ "${{1#-}}" != "$1" ]; do
            if [ "$1" = --output ]; then out=$(echo "$2" | sed "s/%j/$SLURM_JOB_ID/; s/%t/0/"); shift; fi
            shift
        done
        exec "$@" >> "$out" 2>&1
    """,
    "sacct": """
        echo "JobID|State|NodeList"
        for script in {root}/*.sh; do
            id=$(basename $script .sh)
            if [ -e {root}/$id.ended ]; then echo "$id|FAILED|here"; else echo "$id|RUNNING|here"; fi
        done
    """,
}


def write_programs(folder: Path) -> tuple[str, Path]:
    """Write the programs; return a PATH that has them first, and the folder of the scripts that they have received."""
    programs, scripts = folder / "bin", folder / "scripts"
    for each in (programs, scripts):
        each.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text("#!/bin/sh\n" + text.format(root=scripts))
        (programs / name).chmod(0o755)
    return f"{programs}{os.pathsep}{os.environ['PATH']}", scripts
