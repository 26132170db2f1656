"""Speed and memory, side by side with peers and limits: a table on stderr, one JSON document on stdout."""

import argparse
import json
import sys

from rich.console import Console
from rich.table import Table

from tests.benchmarks import (
    adapters,
    candidates,
    collection,
    long_search,
    memory,
    parallel,
    prefixes,
    pruned,
    searches,
    startup,
)

BENCHMARKS = {
    "adapters": adapters,
    "candidates": candidates,
    "searches": searches,
    "collection": collection,
    "memory": memory,
    "parallel": parallel,
    "prefixes": prefixes,
    "pruned": pruned,
    "long_search": long_search,
    "startup": startup,
}


def main() -> None:
    """Runs the named benchmarks, all by default."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all by default")
    names = parser.parse_args().names
    if unknown := sorted(set(names) - set(BENCHMARKS)):
        parser.error(f"NAME must be one of {', '.join(BENCHMARKS)}, got {unknown[0]!r}")
    table = Table(box=None)
    for column in ("what", "ours", "peer", "", "ratio", "against"):
        table.add_column(column, justify="right" if column in ("ours", "peer", "ratio") else "left")
    document = {}
    for name in names or BENCHMARKS:
        rows = BENCHMARKS[name].rows()
        document[name] = [row.as_dict() for row in rows]
        for row in rows:
            table.add_row(row.what, f"{row.ours:.4g}", f"{row.peer:.4g}", row.unit, f"{row.ratio:.3g}", row.against)
    Console(stderr=True, width=None if sys.stderr.isatty() else 180).print(table)
    print(json.dumps(document, indent=2))


main()
