"""Speed of every op and of the whole way, beside peers: see speed.py."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what all benchmarks share

from speed import main

main()
