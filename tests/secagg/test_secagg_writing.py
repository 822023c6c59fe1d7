"""A file is written whole or not at all: full disks, kills, folders in its place, and whoever may read it."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from secagg import ConfigError
from secagg.writing import PRIVATE, PUBLIC, erase, owners_only, replacing, write_new, write_whole

MEBIBYTE = 1 << 20


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("umask", [0o000, 0o077])
@pytest.mark.parametrize(("rights", "write"), [(PRIVATE, write_whole), (PUBLIC, write_whole), (PRIVATE, write_new)])
def test_a_file_has_the_rights_that_were_asked_for_whatever_the_umask(tmp_path, umask, rights, write):
    before = os.umask(umask)
    try:
        write(tmp_path / "f", "é\n", rights)
    finally:
        os.umask(before)
    assert (tmp_path / "f").read_bytes() == "é\n".encode()
    assert mode(tmp_path / "f") == rights
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_secret_is_its_owners_only_already_while_it_is_written(tmp_path):
    (tmp_path / "f").write_text("old")
    with replacing(tmp_path / "f", PUBLIC) as beside:
        assert mode(beside) == PRIVATE
        beside.write_text("new")
        assert (tmp_path / "f").read_text() == "old"
    assert (tmp_path / "f").read_text() == "new"


def test_the_ending_stays(tmp_path):
    with replacing(tmp_path / "image.nii.gz") as beside:
        assert beside.name.endswith(".nii.gz")
        assert beside.parent == tmp_path


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("there", [True, False])
def test_what_cannot_be_finished_leaves_what_was_there(tmp_path, monkeypatch, step, there):
    if there:
        (tmp_path / "f").write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "f", b"new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"] * there


def test_a_new_file_that_cannot_be_written_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        write_new(tmp_path / "f", "key")
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_never_takes_the_place_of_another(tmp_path):
    write_new(tmp_path / "f", "mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("f", "link"):
        with pytest.raises(ConfigError, match=f"{name} exists already; move it away first"):
            write_new(tmp_path / name, "yours")
    assert (tmp_path / "f").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_is_never_replaced(tmp_path):
    (tmp_path / "f").mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "f", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_others_must_not_read_a_secret(tmp_path):
    write_new(tmp_path / "key", "x", PRIVATE)
    owners_only(tmp_path / "key")
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(ConfigError, match="run: chmod 600"):
        owners_only(tmp_path / "key")


def child(program: str, path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


HEAD = "import os, resource, signal, sys\nfrom pathlib import Path\nfrom secagg.writing import write_whole, write_new\n"


@pytest.mark.parametrize("write", ["write_whole", "write_new"])
def test_a_file_that_outgrows_what_the_disk_takes_leaves_nothing(tmp_path, write):
    """RLIMIT_FSIZE, with its signal ignored, is a disk that is full after a mebibyte."""
    program = (
        f"{HEAD}signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({MEBIBYTE}, {MEBIBYTE}))\n"
        f"try:\n    {write}(Path(sys.argv[1]), bytes({2 * MEBIBYTE}))\n"
        "except OSError as error:\n    print(error.errno)\n"
    )
    target = tmp_path / "f"
    if write == "write_whole":
        target.write_text("old")
    told, wrong = child(program, target).communicate()
    assert (told.decode().strip(), wrong) == (str(errno.EFBIG), b"")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"] * (write == "write_whole")


def test_whoever_is_killed_while_it_writes_leaves_a_whole_file(tmp_path):
    """SIGKILL at any moment of a busy loop: the file holds one generation of bytes and never two."""
    program = (
        f"{HEAD}print('ready', flush=True)\nfor number in range(1 << 20):\n"
        f"    write_whole(Path(sys.argv[1]), bytes([number % 251]) * {MEBIBYTE // 4})\n"
    )
    for delay in (0.05, 0.12, 0.2):
        target = tmp_path / "f"
        process = child(program, target)
        assert process.stdout.readline() == b"ready\n"
        while not target.exists():
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = target.read_bytes()
        assert len(found) == MEBIBYTE // 4
        assert len(set(found)) == 1
        target.unlink()


def test_an_erased_file_is_overwritten_before_it_is_removed(tmp_path):
    path = tmp_path / "sealed"
    erase(path)  # nothing there, nothing to do
    path.write_bytes(b"secret" * 1000)
    os.link(path, tmp_path / "other name")
    erase(path)
    assert not path.exists()
    assert (tmp_path / "other name").read_bytes() == bytes(6000)
