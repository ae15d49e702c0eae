"""The results of benchmarks as a page of Markdown tables; FILE is what a benchmark has written with --json.

python -m benchmarks.table FILE... > docs/data-benchmarks.md
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: Python then looks for modules in this folder, not in the one above
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import Comparison, Promise, Table, promise_table

HEAD = """# Data at speed: measured

Written by `python -m benchmarks.table` from the results of the scripts in `benchmarks/`, each run by itself on an idle
machine; its README says what they compare and how. "Reference" is the fourth place's own way, re-implemented in
`benchmarks/reference_way.py`. Every ratio is of two times taken next to each other in one run, given as the median of
all rounds and, in brackets, the lowest and the highest; times on another machine differ, ratios less.
"""


def markdown(table: Table) -> str:
    """A table with its title as a heading."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    note = [f"\n{table.note[:1].upper()}{table.note[1:]}."] if table.note else []
    return "\n".join([f"### {table.title[:1].upper()}{table.title[1:]}", "", *rows, *note, ""])


def section(name: str, result: dict[str, Any]) -> str:
    """All that one script has found."""
    quick = ["**A quick run, which only shows that the script works.**\n"] if result["quick"] else []
    promises = [Promise(**one) for one in result.get("promises", [])]
    tables = [promise_table(promises)] if promises else []
    tables.append(Comparison(result["baseline"], result["contenders"]).as_table(result["title"]))
    tables += [Table(**table) for table in result.get("tables", [])]
    machine = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in result["machine"].items())
    about = f"Machine: {machine}."
    content = f" Content: {result['settings']['content']}." if "content" in result["settings"] else ""
    return "\n".join([f"## {name}", "", about + content, "", *quick, *map(markdown, tables)])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Results of benchmarks as a page of Markdown tables.")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="what a benchmark wrote with --json")
    given = parser.parse_args(argv)
    parts = [section(path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in given.files]
    print("\n".join([HEAD, *parts]).rstrip())


if __name__ == "__main__":
    main()
