"""Where the native core does not load, the error names the cause and the cure."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import mdcp_fast

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


@pytest.mark.parametrize(
    ("found", "cause", "cure"),
    [
        ([], "because it was never built: .* has no _native module", "`pip install .` in the"),
        (
            ["_native.cpython-35m-x86_64-linux-gnu.so"],
            rf"built for another Python than this Python {sys.version_info.major}\."
            rf"{sys.version_info.minor}: found _native.cpython-35m-x86_64-linux-gnu.so",
            "install mdcp-fast again with this Python",
        ),
        (
            [f"_native{SUFFIX}"],
            rf"_native{SUFFIX} does not load on this system: .+",
            "build it here from source",
        ),
    ],
    ids=["never built", "another Python", "broken file"],
)
def test_native_core_does_not_load(tmp_path: Path, found: list[str], cause: str, cure: str) -> None:
    package = Path(mdcp_fast.__file__).parent
    (tmp_path / "mdcp_fast" / "ops").mkdir(parents=True)
    (tmp_path / "mdcp_fast" / "__init__.py").touch()
    (tmp_path / "mdcp_fast" / "ops" / "__init__.py").touch()
    shutil.copy(package / "ops" / "_native.py", tmp_path / "mdcp_fast" / "ops")
    for name in found:
        (tmp_path / "mdcp_fast" / name).write_bytes(b"not a library")
    run = subprocess.run(
        [sys.executable, "-c", "import mdcp_fast.ops._native"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    message = run.stderr.splitlines()[-1]
    assert run.returncode == 1 and message.startswith("ImportError: mdcp_fast could not load")
    assert re.search(f"{cause}.* To mend it: .*{cure}", message)
