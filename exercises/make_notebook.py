"""Writes the first tier as a notebook, from the stubs: nothing is in it alone.

    python exercises/make_notebook.py            writes exercises/first_tier.ipynb
"""
import ast
import json
import sys
from pathlib import Path

HERE = Path(__file__).absolute().parent
STUBS = ("ex1_info_nce.py", "ex2_covariance.py", "ex3_effective_rank.py", "ex4_lars.py")

FIRST = """\
# The first tier

Write each function in its cell, run the cell, then the check below it. The questions, and what
to hand in, are in docs/EXERCISES.md. Start Jupyter in the folder exercises/."""


def cell(kind, text):
    own = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "metadata": {}, "source": text, **own}


def cells_of(number, path):
    """A stub's docstring as text, its functions as code, and the check."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    title, _, text = ast.get_docstring(tree).partition("\n")
    functions = "\n".join(source.splitlines()[tree.body[0].end_lineno:]).strip()
    heading = title.partition("   ")[0].rstrip()
    return [cell("markdown", f"## {heading}\n{text}"), cell("code", functions),
            cell("code", f"check.report({number}, globals());")]


def notebook():
    cells = [cell("markdown", FIRST), cell("code", "import check")]
    for number, name in enumerate(STUBS, start=1):
        cells += cells_of(number, HERE / name)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 4}


def main(argv=None):
    path = HERE / "first_tier.ipynb"
    if path.exists():
        print(f"make_notebook.py: {path} may hold your work: move it away first", file=sys.stderr)
        sys.exit(2)
    path.write_text(json.dumps(notebook(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
