"""Fresh Python processes for tests."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path


def run_python(
    code: str, *arguments: str | Path, folder: Path, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a new process that imports what this one does.

    It starts in `folder`: in the checkout, the source tree would hide the installed package.
    """
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        cwd=folder,
        check=check,
        capture_output=True,
        text=True,
    )
