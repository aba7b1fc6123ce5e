"""Writing: nobody reads half a file, what a user names is never replaced by something else, one process at a time."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from instructedit.errors import DataError
from instructedit.storage.writing import append_line, check_writable, locked, make_folder, write_atomically

as_user = pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")


@pytest.fixture
def umask() -> Iterator[None]:
    old = os.umask(0o022)
    yield
    os.umask(old)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_content_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_a_device_is_written_to_and_stays_one() -> None:
    check_writable("/dev/null")
    write_atomically("/dev/null", b"gone")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()))
    reader.start()
    write_atomically(path, b"through")
    reader.join(10)
    assert found == [b"through"]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_link_is_followed_and_kept(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "file", tmp_path / "link"
    link.symlink_to(target)
    write_atomically(link, b"one")
    write_atomically(link, b"two")
    assert link.is_symlink()
    assert target.read_bytes() == b"two"


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)], ids=oct)
def test_a_new_file_gets_what_the_umask_leaves(tmp_path: Path, mask: int, mode: int) -> None:
    os.umask(mask)
    write_atomically(tmp_path / "file", b"one")
    assert mode_of(tmp_path / "file") == mode


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_an_existing_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    path.chmod(mode)
    write_atomically(path, b"two")
    assert mode_of(path) == mode


def test_a_name_may_be_as_long_as_a_name_can_be(tmp_path: Path) -> None:
    check_writable(tmp_path / ("a" * 250))
    write_atomically(tmp_path / ("a" * 250), b"one")
    assert (tmp_path / ("a" * 250)).read_bytes() == b"one"
    for write in (check_writable, lambda path: write_atomically(path, b"")):
        with pytest.raises(DataError, match=r"cannot be written: .*name.* too long"):
            write(tmp_path / ("a" * 256))


@as_user
def test_a_read_only_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    path.chmod(0o400)
    for write in (check_writable, lambda path: write_atomically(path, b"two")):
        with pytest.raises(DataError, match=r"file: cannot be written"):
            write(path)
    assert path.read_bytes() == b"one"


@as_user
def test_a_read_only_folder_is_reported_before_any_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        for write in (check_writable, lambda path: write_atomically(path, b"two")):
            with pytest.raises(DataError, match="cannot be written: Permission denied"):
                write(tmp_path / "file")
        with pytest.raises(DataError, match="cannot be created: Permission denied"):
            make_folder(tmp_path / "new")
        with pytest.raises(DataError, match="Permission denied"):
            make_folder(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one")
    for write in (check_writable, lambda path: write_atomically(path, b"two")):
        with pytest.raises(DataError, match="cannot be written: it is a folder"):
            write(tmp_path)
        with pytest.raises(DataError, match="cannot be written: "):
            write(tmp_path / "file" / "below")
        with pytest.raises(DataError, match="is not a valid file name"):
            write("a\0b")
    with pytest.raises(DataError, match="the folder cannot be created"):
        make_folder(tmp_path / "file")
    with pytest.raises(DataError, match="is not a valid folder name"):
        make_folder("a\0b")


def test_checking_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one")
    check_writable(tmp_path / "file")
    check_writable(tmp_path / "new")
    make_folder(tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path / "file").read_bytes() == b"one"


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"one")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        write_atomically(path, b"two")
    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        append_line(path, "more")
    assert path.read_bytes().startswith(b"one")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


HOLDS = """
import sys, time
from pathlib import Path
from instructedit.storage.writing import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_kept_out_until_the_first_has_ended(tmp_path: Path) -> None:
    first = python(HOLDS, tmp_path)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        with pytest.raises(DataError, match="another process is writing here"), locked(tmp_path):
            pass
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, sys, time
from instructedit.storage import writing
def stuck(handle):
    print("writing", flush=True)
    time.sleep(60)
os.fsync = stuck
writing.write_atomically(sys.argv[1], b"two")
"""


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"one")
    writer = python(KILLED, tmp_path / "file")
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert len(list(tmp_path.iterdir())) == 2
    assert (tmp_path / "file").read_bytes() == b"one"
    with locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_locking_a_folder_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened: No such file"), locked(tmp_path / "nowhere"):
        pass


def test_lines_are_added(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log"
    append_line(path, "one")
    append_line(path, "zwei ü")
    assert path.read_text(encoding="utf-8") == "one\nzwei ü\n"
    with pytest.raises(DataError, match="cannot be written: Is a directory"):
        append_line(tmp_path, "one")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_reported() -> None:
    for write in (write_atomically, append_line):
        with pytest.raises(DataError, match=r"^file /dev/full: cannot be written: No space left on device"):
            write("/dev/full", b"one" if write is write_atomically else "one")  # type: ignore[operator]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc here")
def test_a_file_system_that_takes_no_files_is_reported() -> None:
    """Whoever asks: root has all permissions here, too."""
    with pytest.raises(DataError, match="the folder cannot be created"):
        make_folder("/proc/self/instructedit")
    with pytest.raises(DataError, match="cannot be written"):
        make_folder("/proc/self")
