"""The notebooks of the documentation run, one after the other, with small settings in place of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"

TINY: dict[str, dict[str, Any]] = {
    "first-contact": {"settings": {"epochs": 0.2, "batch_size": 16, "watch": {"picture_images": 2}, "device": "cpu"}},
    "features-of-my-photographs": {"limit": 12},
    "post-train-and-compare": {
        "settings": {"epochs": 0.03, "batch_size": 8, "watch": {"picture_images": 1}, "device": "cpu"}
        | {"pairs": {"clean_size": 32, "contained_size": 32}},
        "limit": 4,
    },
}
"""Notebooks in the order in which they build on one another, and the values that replace those of their first cells."""


def with_values(notebook: Any, values: dict[str, Any]) -> Any:
    """Let a notebook begin in an empty namespace, and set values after the cell that is tagged `parameters`."""
    (number,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    assert all(f"\n{name} = " in f"\n{notebook.cells[number].source}" for name in values)
    lines = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    notebook.cells.insert(number + 1, nbformat.v4.new_code_cell(lines))
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    return notebook


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(TINY)


@pytest.mark.slow
def test_the_notebooks_run(tmp_path: Path) -> None:
    kernel = AsyncKernelManager(kernel_name="python3")  # one for all, because torch takes seconds to import
    try:
        for name, values in TINY.items():
            notebook = with_values(nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4), values)
            NotebookClient(notebook, km=kernel, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
            assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    finally:
        if kernel.has_kernel:
            NotebookClient(nbformat.v4.new_notebook(), km=kernel)._cleanup_kernel()
    for file in ("report.html", "explore.html"):
        assert (tmp_path / "runs" / "first-contact" / file).is_file()
    assert (tmp_path / "results" / "after" / "result.json").is_file()
    assert (tmp_path / "before-and-after.html").is_file()
