"""Run the notebooks of the documentation and store their outputs: `python -m tests.helpers.notebooks`."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"
NAMES = ("first-contact", "features-of-my-photographs", "post-train-and-compare")
"""Notebooks in the order in which they build on one another."""
MAX_BYTES = 40_000
"""Size from which a picture is stored as JPEG."""


@contextmanager
def kernel() -> Iterator[AsyncKernelManager]:
    """Give a kernel for several notebooks, because torch takes seconds to import."""
    manager = AsyncKernelManager(kernel_name="python3")
    try:
        yield manager
    finally:
        if manager.has_kernel:
            NotebookClient(nbformat.v4.new_notebook(), km=manager)._cleanup_kernel()


def execute(name: str, manager: AsyncKernelManager, folder: Path, values: Mapping[str, Any]) -> Any:
    """Run a notebook in an empty namespace, with `values` set after the cell that is tagged `parameters`."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    (number,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    assert all(f"\n{value} = " in f"\n{notebook.cells[number].source}" for value in values)
    lines = "\n".join(f"{value} = {values[value]!r}" for value in values)
    added = nbformat.v4.new_code_cell("%reset -f"), nbformat.v4.new_code_cell(lines)
    notebook.cells.insert(number + 1, added[1])
    notebook.cells.insert(0, added[0])
    NotebookClient(notebook, km=manager, timeout=3600, resources={"metadata": {"path": str(folder)}}).execute()
    notebook.cells = [cell for cell in notebook.cells if cell not in added]
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    return notebook


def main() -> None:
    """Run all notebooks, and write them with their outputs."""
    with tempfile.TemporaryDirectory() as folder, kernel() as manager:
        for name in NAMES:
            notebook = execute(name, manager, Path(folder), {})
            for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
                cell.execution_count = number + 1
                cell.metadata.pop("execution", None)  # times
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
                for output in cell.outputs:
                    output.update({"execution_count": number + 1} if "execution_count" in output else {})
                    _shrink(output.get("data", {}))
            (NOTEBOOKS / f"{name}.ipynb").write_text(nbformat.writes(notebook).replace(str(Path.home()), "~") + "\n")


def _shrink(data: dict[str, str]) -> None:
    """Store a large picture of an output as JPEG."""
    if len(data.get("image/png", "")) > MAX_BYTES:
        image = Image.open(io.BytesIO(base64.b64decode(data.pop("image/png")))).convert("RGB")
        image.thumbnail((900, 900))
        image.save(stream := io.BytesIO(), "JPEG", quality=80)
        data["image/jpeg"] = base64.b64encode(stream.getvalue()).decode()


if __name__ == "__main__":
    main()
