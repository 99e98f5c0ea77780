"""The manifest of the docs: its parts name one another, its numbers agree, and its command is one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfpatch.cli.main import main
from tests.helpers.command_line import write_photos

MANIFEST = Path(__file__).parents[2] / "docs" / "kubernetes.yaml"


def parts() -> tuple[dict[str, Any], dict[str, Any], str]:
    """The service, the job, and the shell program of its container."""
    service, job = yaml.safe_load_all(MANIFEST.read_text())
    (program,) = job["spec"]["template"]["spec"]["containers"][0]["args"]
    return service, job, program


def test_pods_find_one_another_and_their_numbers_agree() -> None:
    service, job, program = parts()
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert f"--master-addr {job['metadata']['name']}-0.{pod['subdomain']} " in program
    (container,) = pod["containers"]
    assert f"--nnodes {spec['completions']} " in program
    assert spec["completions"] == spec["parallelism"]
    assert f"--nproc-per-node {container['resources']['limits']['nvidia.com/gpu']} " in program
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("begun", [False, True])
def test_the_program_starts_and_continues_a_run(begun: bool, tmp_path: Path) -> None:
    """What it calls in a shell, with torchrun replaced by a program that prints its arguments."""
    _, _, program = parts()
    run, torchrun = tmp_path / "runs" / "photos", tmp_path / "torchrun"
    run.mkdir(parents=True)
    if begun:
        (run / "config.yaml").touch()
    torchrun.write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    torchrun.chmod(0o755)
    images = write_photos(tmp_path / "images", 4)
    program = program.replace("/runs", str(run.parent)).replace("/images", str(images))
    environment = {"PATH": f"{tmp_path}:/bin:/usr/bin", "JOB_COMPLETION_INDEX": "3"}
    done = subprocess.run(["sh", "-euc", program], env=environment, capture_output=True, text=True, check=True)
    words = done.stdout.split()
    assert re.search(r"--node-rank 3 .* -m selfpatch ", done.stdout.replace("\n", " "))
    command = words[words.index("selfpatch") + 1 :]
    if begun:
        assert command == ["resume", str(run)]
    else:
        assert command[0] == "pretrain"
        assert main([*command, "--dry-run", "--batch-size", "4", "--loader.held-out", "0"]) == 0
