"""What pruning leaves of networks that others have trained: see real_benchmark.py."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# What the benchmarks of quality share, and what all benchmarks share.
sys.path += [str(HERE.parent), str(HERE.parents[1])]

from real_benchmark import main

main()
