"""Reads what torch.save wrote, once nothing in it was found damaged."""

from __future__ import annotations

import errno
import os
import zipfile
from typing import IO, Any

import torch


def read_torch_file(path: str | os.PathLike[str]) -> Any:
    """The content of a file of torch.save, on the CPU, with `weights_only=True`: nothing is run.

    torch.load does not look at the checksums in the file, and unpacks what is compressed, which
    torch.save never does.

    Raises:
        OSError: It cannot be read.
        ValueError: A part of it is damaged, or would take more memory than the file has bytes.
        Exception: What torch, zipfile and pickle raise where it is no such file.
    """
    with open(path, "rb") as file:
        try:
            _check_parts(file)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise ValueError("a part of it is said to be where no file has one") from error


def _check_parts(file: IO[bytes]) -> None:
    if not zipfile.is_zipfile(file):  # as files of torch before 1.6 are not
        return
    with zipfile.ZipFile(file) as archive:
        for part in archive.infolist():
            if part.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{part.filename} is compressed")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} is damaged: its checksum is another")
