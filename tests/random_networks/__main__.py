"""Command line: `python -m random_networks run --count 10000`, and `... show LINE`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from random_networks.run import printed, run, show


def main() -> int:
    parser = argparse.ArgumentParser(prog="networks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="examine random networks")
    running.add_argument("--count", type=int, default=1000)
    running.add_argument("--seed", type=int, default=0, help="the first seed")
    running.add_argument("--results", type=Path, help="a JSON file for the counts")
    showing = commands.add_parser("show", help="examine one network")
    showing.add_argument("network", help="its line, as `run` prints it")
    given = parser.parse_args()
    if given.command == "show":
        return int(show(given.network).failed)
    seeds = range(given.seed, given.seed + given.count)
    counts = run(seeds, given.results, loud=True)
    print(printed(counts))
    return int(bool(counts.failures))


if __name__ == "__main__":
    sys.exit(main())
