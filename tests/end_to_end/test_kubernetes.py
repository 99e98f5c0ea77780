"""The manifest of the docs: its parts name one another, its numbers agree, and its command is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from selfpatch.cli.main import main
from tests.helpers.command_line import write_photos

MANIFEST = Path(__file__).parents[2] / "docs" / "kubernetes.yaml"


@pytest.fixture
def parts() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The service, the job, and its container."""
    service, job = yaml.safe_load_all(MANIFEST.read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return service, job, container


def test_pods_find_one_another_and_their_numbers_agree(parts: Any) -> None:
    service, job, container = parts
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert (service["kind"], job["kind"], spec["completionMode"]) == ("Service", "Job", "Indexed")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    program, *words = container["command"]
    torchrun = get_args_parser().parse_args([*words, *container["args"]])
    assert program == "torchrun"
    assert torchrun.rdzv_endpoint.split(":")[0] == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert int(torchrun.nnodes) == spec["completions"] == spec["parallelism"]
    assert int(torchrun.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert torchrun.max_restarts > 0, "without restarts, pretrain refuses an --out that holds a run"
    assert (torchrun.module, torchrun.training_script) == (True, "selfpatch")


@pytest.mark.slow
def test_the_command_is_one(parts: Any, tmp_path: Path) -> None:
    words = parts[2]["args"]
    images = write_photos(tmp_path / "images", 4)
    command = [word.replace("=/images", f"={images}").replace("=/runs", f"={tmp_path}") for word in words]
    command = command[command.index("selfpatch") + 1 :]
    assert main([*command, "--dry-run", "--batch-size", "4", "--loader.held-out", "0"]) == 0
