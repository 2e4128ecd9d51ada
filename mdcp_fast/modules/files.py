"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

PART = re.compile(r"\.mdcp-[0-9a-f]{16}\.part")  # folders of files under way
SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")  # how Rust's libraries put errno into their text
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


@contextmanager
def atomic_write(path: AnyPath) -> Iterator[Path]:
    """Gives a temporary file that takes the place of `path` when the block ends without error.

    So a file appears whole or not at all, also when the program is killed or the disk is full: it
    is on the disk before it gets its name, and its name is on the disk when this returns. As with
    `open`, symbolic links are followed, a file that is there keeps its mode, and a new one gets
    what the umask leaves; hard links to the old file keep the old content.

    The temporary file has the name of `path` and lies in a folder of its own beside it. What the
    block puts there moves along, `path` itself last. Such folders of processes that were killed go
    when the next file beside them is written.

    Args:
        path: Where the file belongs: str, bytes or path-like.

    Raises:
        OSError: It cannot be written there; it names `path`. Something other than a regular file is
            not replaced, nor one that cannot be opened for writing.
    """
    given = os.fspath(path)
    wanted = Path(os.fsdecode(given))
    with ExitStack() as stack:
        with _naming(given):
            if os.fsdecode(given).endswith(os.sep):
                raise IsADirectoryError(errno.EISDIR, "expected a file, got a folder")
            real = _real(wanted)
            _check_writable(real)
            folder, held = stack.enter_context(_part(real.parent))
            temporary = folder / (wanted.name if is_utf8(wanted.name) else "file")
            usual = _created(temporary)
        with _naming(given, folder):
            # Libraries in other languages want UTF-8, and every open folder has a name in that.
            named = folder if is_utf8(folder) else Path(f"/proc/self/fd/{held}")
            yield named / temporary.name
        with _naming(given):
            moves = [(temporary, real)]
            for file in sorted(folder.iterdir()):
                if file != temporary:
                    beside = _real(wanted.parent / file.name)
                    _check_writable(beside)
                    moves.insert(0, (file, beside))
            for file, target in moves:
                _finish(file, target, usual)
            for file, target in moves:
                _move(file, target)
            for place in {target.parent for _, target in moves}:
                _sync(place)


def is_utf8(path: str | Path) -> bool:
    """Whether a path is text; Linux has paths of any bytes."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _real(path: Path) -> Path:
    """Where `path` leads over all symbolic links, be there a file or not."""
    with suppress(FileNotFoundError):
        path.stat()  # which finds circles
    return Path(os.path.realpath(path))


def _check_writable(path: Path) -> None:
    """Refuses what `open` would refuse to write to, and what is no regular file."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:
        return
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, "expected a file, got a folder")
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, f"expected a regular file, got {KINDS.get(kind, 'another')}")
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


@contextmanager
def _part(beside: Path) -> Iterator[tuple[Path, int]]:
    """A folder of a name of its own, open and locked as long as this process lives, then gone."""
    while True:
        folder = beside / f".mdcp-{secrets.token_hex(8)}.part"
        folder.mkdir(mode=0o700)
        try:
            held = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # someone took it for a dead process's in the moment before it was locked
        try:
            if _locked(held) and folder.exists():
                break
        except BaseException:
            os.close(held)
            raise
        os.close(held)
    try:
        _remove_stale(beside)
        yield folder, held
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _locked(held: int) -> bool:
    """Takes the lock of an open folder, which the system frees when its process ends."""
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # A file system without locks: nobody can take this folder for a dead process's either.
        return error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL)
    return True


def _remove_stale(beside: Path) -> None:
    """Removes folders of processes that are dead: those that nobody holds a lock on."""
    for name in os.listdir(beside):
        if PART.fullmatch(name):
            with suppress(OSError):
                held = os.open(beside / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(beside / name, ignore_errors=True)
                finally:
                    os.close(held)


def _created(path: Path) -> int:
    """Makes an empty file and returns its mode, which the system made of the umask."""
    held = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return stat.S_IMODE(os.fstat(held).st_mode)
    finally:
        os.close(held)


def _finish(file: Path, target: Path, usual: int) -> None:
    """Gives a file the owner and the mode that it shall have, and puts its content on the disk."""
    held = os.open(file, os.O_RDWR)
    try:
        try:
            old = target.stat()
        except FileNotFoundError:
            mode = usual
        else:
            mode, new = stat.S_IMODE(old.st_mode), os.fstat(held)
            if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
                with suppress(PermissionError):  # only root may give files away
                    os.fchown(held, old.st_uid, old.st_gid)
        os.fchmod(held, mode)
        os.fsync(held)
    finally:
        os.close(held)


def _move(file: Path, target: Path) -> None:
    try:
        os.replace(file, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # A file beside `path` that is a symbolic link to another file system.
        with atomic_write(target) as temporary:
            shutil.copyfile(file, temporary)


def _sync(folder: Path) -> None:
    """Puts the names in a folder on the disk."""
    held = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(held)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # file systems that cannot
            raise
    finally:
        os.close(held)


@contextmanager
def _naming(path: str | bytes, folder: Path | None = None) -> Iterator[None]:
    """Makes errors of the system name the path that the user knows.

    Args:
        path: That path.
        folder: Errors about files elsewhere than in this one are left alone.
    """
    try:
        yield
    except OSError as error:
        elsewhere = folder is not None and not _inside(error.filename, folder)
        if error.errno is None or elsewhere:
            raise
        raise OSError(error.errno, error.strerror, path) from error
    except Exception as error:
        found = SYSTEM_ERROR.search(str(error))
        if folder is None or found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), path) from error


def _inside(name: object, folder: Path) -> bool:
    """Whether an error's file lies in `folder`, as one without a file may."""
    if not isinstance(name, (str, bytes)):
        return True
    path = Path(os.fsdecode(name))
    return path.parent == folder or path.parent.parent == Path("/proc/self/fd") or path == folder
