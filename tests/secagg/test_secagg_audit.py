"""The audit log: a chain that shows every line that was changed, moved or taken out, whoever appends."""

import json
import multiprocessing
import os
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import cli
from secagg.audit import LONGEST, START, AuditLog, entries
from secagg.errors import ConfigError
from tests.support.hostile_text import HOSTILE, acting


def written(path, count=4):
    for number in range(count):
        AuditLog(path).append("site-a", "connected", number=number)
    return path.read_bytes().splitlines(keepends=True)


def test_what_was_appended_is_read_in_order(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    first = log.append("operator jo", "approved", site="site-a", fingerprint="ab")
    second = log.append("site-a", "connected")
    assert entries(log.path) == [first, second]
    assert (first.who, first.what, first.about) == ("operator jo", "approved", {"site": "site-a", "fingerprint": "ab"})
    assert json.loads(log.path.read_bytes().splitlines()[0])["previous"] == START
    assert log.path.stat().st_mode & 0o777 == 0o600


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_change_of_the_file_but_a_cut_at_the_end_of_a_line_is_found(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    lines = written(path)
    how = data.draw(st.sampled_from(["byte", "out", "swap", "twice", "cut"]))
    place = data.draw(st.integers(0, len(lines) - 2))
    match how:
        case "byte":
            at = data.draw(st.integers(0, len(lines[place]) - 1))
            changed = bytearray(lines[place])
            changed[at] ^= data.draw(st.integers(1, 255))
            lines[place] = bytes(changed)
        case "out":
            del lines[place]
        case "swap":
            lines[place], lines[place + 1] = lines[place + 1], lines[place]
        case "twice":
            lines.insert(place, lines[place])
        case "cut":
            lines[-1] = lines[-1][: data.draw(st.integers(1, len(lines[-1]) - 1))]
    path.write_bytes(b"".join(lines))
    with pytest.raises(ConfigError, match=r"line \d"):
        entries(path)


def test_a_line_that_a_crash_cut_off_gives_way_to_the_next_entry(tmp_path):
    path = tmp_path / "audit.jsonl"
    lines = written(path)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    AuditLog(path).append("site-b", "connected")
    assert [entry.who for entry in entries(path)] == ["site-a"] * 3 + ["site-b"]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "audit.jsonl"
    written(path)
    before = path.read_bytes()
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: whole(file, data[:7], at))
    with pytest.raises(OSError, match="cut off"):
        AuditLog(path).append("site-b", "connected")
    assert path.read_bytes() == before


@settings(max_examples=30, deadline=None)
@given(text=HOSTILE)
def test_whatever_text_is_kept_in_a_line_and_nothing_follows_from_its_length(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    for _ in range(2):
        AuditLog(path).append(text, text, **{f"field{n}": text * 3 for n in range(20)})
    assert len(entries(path)) == 2
    assert not acting(path.read_text("ascii"))
    assert max(map(len, entries(path)[0].about.values()), default=0) <= LONGEST


def _append(path, who):
    for _ in range(20):
        AuditLog(path).append(who, "connected")


def test_processes_append_to_one_file(tmp_path):
    path = tmp_path / "audit.jsonl"
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=_append, args=(path, name)) for name in ("a", "b", "c")]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert sorted(entry.who for entry in entries(path)) == sorted("abc" * 20)


def run(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["secagg", "audit", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), *capsys.readouterr()


def test_the_command_says_whether_the_chain_holds(tmp_path, capsys, monkeypatch):
    path = tmp_path / "audit.jsonl"
    lines = written(path)
    head = entries(path)[-1].head
    code, out, _ = run(capsys, monkeypatch, path, "--last", 1, "--head", head)
    assert (code, out.count("\n")) == (0, 2)
    assert "site-a: connected (number 3)" in out
    assert out.endswith(f"4 entries, and the chain holds; head {head}\n")
    path.write_bytes(b"".join(lines[:-1]))
    assert run(capsys, monkeypatch, path)[0] == 0
    code, _, err = run(capsys, monkeypatch, path, "--head", head)
    assert (code, "the file was cut off before it" in err) == (1, True)
    path.write_bytes(b"".join(lines[1:]))
    code, _, err = run(capsys, monkeypatch, path)
    assert (code, err.count("\n"), "line 1" in err) == (1, 1, True)
    assert run(capsys, monkeypatch, tmp_path / "none")[0] == 3
