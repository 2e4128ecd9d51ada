"""Accuracy of pruned networks, beside rivals: see quality.py."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what all benchmarks share

from quality import main

main()
