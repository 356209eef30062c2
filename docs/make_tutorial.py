"""Execute docs/tutorial.py, a script in cells; write it with its outputs: docs/tutorial.ipynb.

Needs the extra `notebook`. `--check` writes nothing: it executes, and says whether the notebook has
the cells of the script.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
SOURCE, NOTEBOOK = HERE / "tutorial.py", HERE / "tutorial.ipynb"
SECONDS = 120
"""The most that a cell may take."""


def main(arguments: list[str]) -> int:
    """Execute, and write or check; return the exit code."""
    notebook = executed()
    if "--check" in arguments:
        written = nbformat.read(NOTEBOOK, as_version=4)
        if sources(written) != sources(notebook):
            print(
                "tutorial.ipynb is out of date: run python docs/make_tutorial.py", file=sys.stderr
            )
            return 1
        return 0
    NOTEBOOK.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    print(NOTEBOOK)
    return 0


def executed() -> Any:
    """Return the notebook with its outputs."""
    notebook = jupytext.read(SOURCE)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell["metadata"] = {}
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(HERE.parent)}},
    )
    client.execute()
    for cell in notebook.cells:
        cell.get("outputs", [])[:] = _joined(cell.get("outputs", []))
    return notebook


def sources(notebook: Any) -> list[tuple[str, str]]:
    """Return kind and text of each cell."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def _joined(outputs: list[Any]) -> list[Any]:
    """Return outputs with the pieces of one stream put together."""
    joined: list[Any] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last is not None and _stream(last) == _stream(output) != "":
            last.text += output.text
        else:
            joined.append(output)
    return joined


def _stream(output: Any) -> str:
    """Return the name of the stream that an output is a piece of, "" where it is something else."""
    return str(output.name) if output.output_type == "stream" else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
