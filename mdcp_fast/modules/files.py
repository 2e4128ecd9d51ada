"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path beside `path` that takes its place when the block ends without error.

    So a file appears whole or not at all, also when the program is killed or the disk is full.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_files(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives `path`'s place in a temporary folder, for files that belong together.

    When the block ends without error all files in that folder move to where `path` is, `path`
    itself last; after an error none does.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        files = sorted(Path(folder).iterdir(), key=lambda file: file == temporary)
        for file in files:
            with open(file, "rb+") as opened:
                os.fsync(opened.fileno())
            file.chmod(0o666 & ~_umask())
        for file in files:
            os.replace(file, path.parent / file.name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
