"""A file is written where `open` would write it, whole or not at all, and nothing else is left."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from processes import run_python

from mdcp_fast.modules import files
from mdcp_fast.modules.files import atomic_write

# A process that may write no more than 20,000 bytes to a file: a full disk that needs no disk.
SMALL_DISK = """
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
"""


def write(path: str | bytes | Path, text: str = "new") -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    target = tmp_path / "store" / "v1"
    target.write_text("old")
    (tmp_path / "link").symlink_to("store/v1")
    (tmp_path / "link to link").symlink_to(tmp_path / "link")
    write(tmp_path / "link to link")
    assert (tmp_path / "link to link").is_symlink() and (tmp_path / "link").is_symlink()
    assert target.read_text() == "new" and not target.is_symlink()
    assert os.listdir(tmp_path / "store") == ["v1"]


def test_a_link_to_nothing_yet_makes_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to("store/v2")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "store" / "v2").read_text() == "new"


@pytest.mark.parametrize("old", [0o600, 0o640, 0o666, 0o755, 0o4711])
def test_a_file_keeps_its_mode(tmp_path: Path, old: int) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(old)
    write(path)
    assert mode(path) == old and path.read_text() == "new"


def test_the_mode_holds_for_writers_that_make_a_file_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o600)
    with atomic_write(path) as temporary:
        (temporary.parent / "other").write_text("new")
        os.replace(temporary.parent / "other", temporary)
    assert mode(path) == 0o600 and path.read_text() == "new"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o007])
def test_a_new_file_has_what_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    code = f"""
        import os, pathlib
        from mdcp_fast.modules.files import atomic_write
        os.umask({mask})
        with atomic_write("file") as temporary:
            temporary.write_text("new")
        pathlib.Path("usual").write_text("new")
        assert os.umask(0) == {mask}
    """
    run_python(code, folder=tmp_path)
    assert mode(tmp_path / "file") == mode(tmp_path / "usual") == 0o666 & ~mask


def test_the_umask_of_the_process_is_never_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("other threads make files, too"))
    write(tmp_path / "file")


def test_while_it_is_written_nobody_else_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o600)
    with atomic_write(path) as temporary:
        assert mode(temporary.parent) == 0o700


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "null").symlink_to("/dev/null")
    for name, number in [
        ("folder", errno.EISDIR),
        ("new/", errno.EISDIR),
        ("pipe", errno.EINVAL),
        ("circle", errno.ELOOP),
        ("null", errno.EINVAL),
        ("nowhere/file", errno.ENOENT),
        ("x" * 256, errno.ENAMETOOLONG),
    ]:
        path = f"{tmp_path}/{name}"
        with pytest.raises(OSError) as caught:
            write(path)
        assert caught.value.errno == number and caught.value.filename == path, name
    with pytest.raises(OSError, match="expected a regular file, got a character device: '/dev/nul"):
        write("/dev/null")
    assert Path("/dev/null").is_char_device()
    assert sorted(os.listdir(tmp_path)) == ["circle", "folder", "null", "pipe"]


def test_a_file_that_may_not_be_written_is_refused_as_open_does(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o444)
    code = """
        import os, sys
        from mdcp_fast.modules.files import atomic_write
        if os.getuid() == 0:
            os.setgroups([]); os.setgid(65534); os.setuid(65534)  # root may write everything
        try:
            with atomic_write(sys.argv[1]) as temporary:
                temporary.write_text("new")
        except PermissionError as error:
            print(error.filename)
    """
    tmp_path.chmod(0o777)
    for folder in (tmp_path.parent, tmp_path.parent.parent):
        if os.getuid() == 0:
            folder.chmod(0o755)
    assert run_python(code, path, folder=tmp_path).stdout.strip() == str(path)
    assert path.read_text() == "old" and mode(path) == 0o444
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "name", [b"plain", "Gewicht Öl".encode(), b"no text \xff\xfe", b"n" * 255, b"\xf0\x9f\xa6\x86"]
)
def test_every_legal_name_will_do_in_str_and_in_bytes(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    for given in (path, os.fsdecode(path), Path(os.fsdecode(path))):
        write(given)
        assert os.listdir(os.fsencode(tmp_path)) == [name]
        os.remove(path)


def test_a_relative_path_and_a_folder_that_is_not_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"\xff\xfe")
    os.mkdir(folder)
    monkeypatch.chdir(folder)
    with atomic_write("file") as temporary:
        str(temporary).encode()  # libraries in other languages can open it
        temporary.write_text("new")
    assert os.listdir(folder) == [b"file"]


def test_files_of_the_block_move_along(tmp_path: Path) -> None:
    (tmp_path / "net.bin").write_text("old")
    (tmp_path / "net.bin").chmod(0o600)
    with atomic_write(tmp_path / "net.xml") as temporary:
        temporary.write_text("new")
        temporary.with_suffix(".bin").write_text("weights")
    assert sorted(os.listdir(tmp_path)) == ["net.bin", "net.xml"]
    assert (tmp_path / "net.bin").read_text() == "weights" and mode(tmp_path / "net.bin") == 0o600
    with pytest.raises(KeyError), atomic_write(tmp_path / "net.xml") as temporary:
        temporary.with_suffix(".bin").write_text("half")
        raise KeyError
    assert (tmp_path / "net.bin").read_text() == "weights"
    (tmp_path / "other.bin").mkdir()
    with pytest.raises(IsADirectoryError), atomic_write(tmp_path / "other.xml") as temporary:
        temporary.with_suffix(".bin").write_text("weights")
    assert sorted(os.listdir(tmp_path)) == ["net.bin", "net.xml", "other.bin"]


def test_parts_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    code = """
        import sys, time
        from mdcp_fast.modules.files import atomic_write
        with atomic_write(sys.argv[1]) as temporary:
            temporary.write_text("half of the n")
            print("there", flush=True)
            time.sleep(60)
    """
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code.replace("\n        ", "\n"), tmp_path / "file"],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
            cwd=tmp_path,
        )
        for _ in range(2)
    ]
    try:
        for process in running:
            assert process.stdout is not None and process.stdout.readline() == b"there\n"
        assert len(os.listdir(tmp_path)) == 2
        running[0].send_signal(signal.SIGKILL)
        running[0].wait()
        write(tmp_path / "another")
        assert len(os.listdir(tmp_path)) == 2  # the other file, and the living one's part
    finally:
        for process in running:
            process.kill()
            process.wait()
            process.stdout.close()
    write(tmp_path / "file")
    assert sorted(os.listdir(tmp_path)) == ["another", "file"]


def test_threads_that_write_one_file_leave_one_of_their_texts(tmp_path: Path) -> None:
    path = tmp_path / "file"
    failed = []

    def many(text: str) -> None:
        try:
            for _ in range(25):
                write(path, text)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=many, args=(str(i) * 1000,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and path.read_text() in {str(i) * 1000 for i in range(4)}
    assert os.listdir(tmp_path) == ["file"]


def test_file_and_folder_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    fsync = os.fsync

    def recorded(held: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{held}"), (tmp_path / "file").exists()))
        fsync(held)

    monkeypatch.setattr(os, "fsync", recorded)
    write(tmp_path / "file")
    (file, before), (folder, after) = synced
    assert file.endswith("/file") and not before  # content first, then its name
    assert folder == str(tmp_path) and after


def test_errors_about_other_files_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "file"):
        Path("/nowhere/labels").read_text()
    assert caught.value.filename == "/nowhere/labels"
    with pytest.raises(OSError, match="no number"), atomic_write(tmp_path / "file"):
        raise OSError("no number")
    assert os.listdir(tmp_path) == []


def test_on_a_file_system_without_locks_no_part_is_taken_for_a_dead_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", none)
    with atomic_write(tmp_path / "file") as first:
        write(tmp_path / "other")
        first.write_text("new")
    assert sorted(os.listdir(tmp_path)) == ["file", "other"]


def test_a_full_disk_is_an_error_that_names_the_path(tmp_path: Path) -> None:
    """Of whatever writes: safetensors and torch have words of their own for it."""
    code = (
        SMALL_DISK
        + """
    import errno, os, torch
    from torch import nn
    from torch.utils.data import DataLoader
    from mdcp_fast import PruningPlan, finetune, save, trace

    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 100))
    plan = PruningPlan.build(trace(net, torch.zeros(1, 3, 3, 3)), [range(64)])
    data = [(torch.randn(3, 3, 3), 1) for _ in range(4)]

    def refused(path, write):
        try:
            write()
        except OSError as error:
            assert error.errno == errno.EFBIG, error
            assert error.filename == path, error
        else:
            raise AssertionError(path)

    refused("net.safetensors", lambda: save("net.safetensors", net, plan))
    refused(b"net", lambda: save(b"net", net, plan))
    refused("run/finetune.pt", lambda: finetune(
        net, DataLoader(data, 2), epochs=1, checkpoint="run", progress=False
    ))
    assert os.listdir(".") == ["run"] and os.listdir("run") == []
    """
    )
    run_python(code, folder=tmp_path)
