"""What pruning leaves of networks that others have trained: see real_benchmark.py."""

import sys
from pathlib import Path

# What the benchmarks of quality share, and what all benchmarks share.
sys.path += [str(Path(__file__).resolve().parents[parent]) for parent in (1, 2)]

from real_benchmark import main

main()
