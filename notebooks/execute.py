"""Run the notebooks again, in place, and leave nothing in them but cells and their outputs.

    python notebooks/execute.py                     # all of them
    python notebooks/execute.py 03_runs.ipynb

Each is run in an empty folder with a run store of its own, by the Python that runs this, on one
thread. What it writes there is gone afterwards; a notebook that fails is not written.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
TIMEOUT = 300  #: seconds for one cell
# Of a notebook's metadata only what says how to open it: versions would change with the machine
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def notebooks(folder: Path = HERE) -> list[Path]:
    """The notebooks of `folder`, in order."""
    return sorted(folder.glob("*.ipynb"))


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run all cells of `notebook`, in place, in a fresh kernel whose working directory is `folder`.

    The run store is `folder/runs`, and the packages are those of this checkout.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; says which, and how.
    """
    env = {
        **os.environ,
        "DISTILLATION_RUNS": str(folder / "runs"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(
            [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
    }
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name=KERNEL["name"],
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
    )
    # Of this Python, whatever kernels are installed under the name
    client.create_kernel_manager().kernel_spec_manager = KernelSpecManager(kernel_dirs=[])
    client.execute(env=env)
    return notebook


def strip(notebook: NotebookNode) -> NotebookNode:
    """Take away, in place, whatever depends on when and where `notebook` was run."""
    notebook.metadata = NotebookNode(kernelspec=KERNEL, language_info={"name": "python"})
    for number, cell in enumerate(notebook.cells, 1):
        cell.id = f"cell-{number:02}"
        # What its figure shows, in words
        cell.metadata = NotebookNode({k: v for k, v in cell.metadata.items() if k == "alt"})
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = NotebookNode()
    return notebook


def main(names: list[str]) -> None:
    """Run the notebooks of these names, or all."""
    known = {path.name: path for path in notebooks()}
    unknown = [name for name in names if Path(name).name not in known]
    if unknown:
        raise SystemExit(f"no notebook {', '.join(unknown)}; there are: {', '.join(known)}")
    for path in [known[Path(name).name] for name in names] or known.values():
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            execute(notebook, Path(folder))
        nbformat.write(strip(notebook), path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
