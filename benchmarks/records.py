"""The results file: one record for each thing measured, written at once, so a killed run resumes.

{"environments": [...], "records": [...]}; a record names its environment (machine, versions,
commit of the library, date) by its place in the first list.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

KEY = ("network", "method", "budget", "treatment", "seed")
PACKAGES = ("torch", "torchvision", "torch-pruning", "numpy", "scipy", "scikit-learn")


class Records:
    """A results file.

    Args:
        path: Made when the first record is added.
        key: The fields that tell records apart.
        where: Describes where a record was measured; by default `environment`.
    """

    def __init__(
        self,
        path: Path,
        key: Sequence[str] = KEY,
        where: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        self.path, self.key = path, key
        self._where = where or environment
        content = json.loads(path.read_text()) if path.is_file() else {}
        self.environments: list[dict[str, Any]] = content.get("environments", [])
        self.records: list[dict[str, Any]] = content.get("records", [])

    def __contains__(self, key: tuple[Any, ...]) -> bool:
        return self.find(key) is not None

    def find(self, key: tuple[Any, ...]) -> dict[str, Any] | None:
        """The record of a key."""
        return next((one for one in self.records if self.key_of(one) == key), None)

    def forget(self, pattern: str) -> int:
        """Drops the records whose key, its parts joined by "|", matches; they are measured anew."""
        wanted = re.compile(pattern)
        kept = [one for one in self.records if not wanted.search(written(self.key_of(one)))]
        dropped = len(self.records) - len(kept)
        self.records = kept
        return dropped

    def add(self, key: tuple[Any, ...], measured: dict[str, Any]) -> None:
        """Adds one record, in place of an earlier one of this key, and writes the file."""
        now = self._where()
        if now not in self.environments:
            self.environments.append(now)
        record = dict(zip(self.key, key, strict=True)) | measured
        record["environment"] = self.environments.index(now)
        self.records = [one for one in self.records if self.key_of(one) != key] + [record]
        self.write()

    def key_of(self, record: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(record[name] for name in self.key)

    def write(self) -> None:
        """Writes the whole file, or leaves the old one."""
        self._forget_environments()
        lines = ",\n".join(json.dumps(one) for one in self.records)
        text = f'{{"environments": {json.dumps(self.environments, indent=1)},\n"records": [\n'
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".part")
        temporary.write_text(f"{text}{lines}\n]}}\n")
        temporary.replace(self.path)

    def _forget_environments(self) -> None:
        """Drops environments that no record names any more."""
        used = sorted({one["environment"] for one in self.records})
        place = {old: new for new, old in enumerate(used)}
        self.environments = [self.environments[old] for old in used]
        self.records = [one | {"environment": place[one["environment"]]} for one in self.records]


def written(key: tuple[Any, ...]) -> str:
    return "|".join(str(part) for part in key)


@functools.cache  # of the start: what a running process has imported does not change any more
def environment(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Machine, versions, the library's commit, today."""
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "none"
    return {
        "machine": f"{os.cpu_count()} cores, {_processor()}",
        "python": platform.python_version(),
        **versions,
        "mdcp_fast": _commit(),
        "date": date.today().isoformat(),
    }


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def _commit() -> str:
    """The last commit that touched the library, "+" if it was changed since."""
    root = Path(__file__).resolve().parent.parent
    sources = ["--", "mdcp_fast", "csrc"]

    def git(*arguments: str) -> str:
        command = ["git", "-C", os.fspath(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("log", "-1", "--format=%h", *sources)
        return commit + ("+" if git("status", "--porcelain", "-uno", *sources) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
