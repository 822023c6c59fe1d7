"""The frame of audits/: verdicts become exit statuses, what raises is a violation, what was done is not done again."""

import json
import subprocess

import pytest

from audits import __main__ as command
from audits import report, running, scope, table
from audits.base import Audit, Result, Unable, worst
from audits.scope import ROOT


@pytest.fixture
def audits(monkeypatch):
    """Puts audits into the table: name -> what `run` does."""

    def put(**runs):
        made = [Audit(name, "tries", (), {"quick": 1}, run) for name, run in runs.items()]
        for where in (table, command):
            monkeypatch.setattr(where, "AUDITS", tuple(made))

    return put


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Calls `python -m audits` and gives its exit status, and what stands in audit.json."""

    def called(*words):
        monkeypatch.setattr("sys.argv", ["audits", *words, "--out", str(tmp_path)])
        with pytest.raises(SystemExit) as ended:
            command.main()
        printed = capsys.readouterr()
        return ended.value.code, json.loads((tmp_path / "audit.json").read_text()), printed.out

    return called


def gives(verdict):
    return lambda task: Result(verdict, "tried", {"draws": 3})


def raises(error):
    def run(task):
        raise error

    return run


def test_the_exit_status_is_that_of_the_worst(audits, call):
    audits(a=gives("holds"))
    assert call("quick")[0] == 0
    audits(a=gives("holds"), b=gives("no power"))
    assert call("quick")[0] == 2
    audits(a=gives("holds"), b=gives("no power"), c=gives("violated"), d=gives("holds"))
    assert call("quick")[0] == 1
    assert worst([]) == "no power"


@pytest.mark.parametrize(
    ("error", "status", "verdict"),
    [
        (ValueError("no such key"), 1, "violated"),
        (AssertionError("differs"), 1, "violated"),
        (SystemExit(0), 1, "violated"),
        (Unable("spin is not installed"), 2, "no power"),
    ],
)
def test_an_audit_that_raises_is_told_and_the_others_go_on(audits, call, error, status, verdict):
    audits(a=raises(error), b=gives("holds"))
    code, content, said = call("quick")
    assert code == status
    assert [each["verdict"] for each in content["audits"]] == [verdict, "holds"]
    assert str(error) in said
    assert str(error) in content["audits"][0]["says"]


def test_what_was_done_is_not_done_again_and_what_failed_is(audits, call):
    ran = []

    def counted(name, verdict, error=None):
        def run(task):
            ran.append((name, task.seed))
            if error:
                raise error
            return Result(verdict, "tried", {})

        return run

    audits(a=counted("a", "holds"), b=counted("b", "holds", Unable("no gcc")), c=counted("c", "violated"))
    call("quick")
    call("quick")
    assert ran == [("a", 0), ("b", 0), ("c", 0), ("b", 0)]
    call("quick", "--seed", "7")
    assert ran[4:] == [("a", 7), ("b", 7), ("c", 7)]
    call("c", "--again")
    assert ran[7:] == [("c", 0)]


def test_other_sources_are_another_run(audits, call, monkeypatch):
    ran = []
    audits(a=lambda task: ran.append(task.out) or Result("holds", "tried", {}))
    call("quick")
    other = scope.Scope("0" * 40, False, "1" * 64)
    monkeypatch.setattr(running, "scope", lambda: other)
    call("quick")
    assert len(ran) == 2


def test_other_packages_are_another_run_and_a_picture_that_is_gone(audits, call, monkeypatch):
    ran = []

    def run(task):
        ran.append(task.out)
        (task.out / "a.svg").write_text("<svg/>")
        return Result("holds", "tried", {}, (task.out / "a.svg",))

    audits(a=run)
    call("quick")
    monkeypatch.setattr(running, "machine", lambda: "another numpy")
    call("quick")
    assert len(ran) == 2
    call("quick")
    (ran[0] / "a.svg").unlink()
    call("quick")
    assert len(ran) == 3


def test_what_ran_while_files_changed_is_not_kept(audits, call, monkeypatch):
    ran = []
    audits(a=lambda task: ran.append(1) or Result("holds", "tried", {}))
    for where in (running, report):
        monkeypatch.setattr(where, "changed", lambda: True)
    assert call("quick")[1]["changed_meanwhile"]
    call("quick")
    assert len(ran) == 2


def test_a_second_run_in_a_folder_leaves_it_alone(audits, monkeypatch, tmp_path, capsys):
    audits(a=gives("holds"))
    monkeypatch.setattr("sys.argv", ["audits", "quick", "--out", str(tmp_path)])
    with running.alone(tmp_path), pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 3
    assert "another run is at work" in capsys.readouterr().err


def test_broken_off_goes_on(audits, call, tmp_path, monkeypatch, capsys):
    ran = []
    ends = [KeyboardInterrupt(), None]

    def second(task):
        if error := ends.pop(0):
            raise error
        return Result("holds", "tried", {})

    audits(a=lambda task: ran.append("a") or Result("holds", "tried", {}), b=second)
    monkeypatch.setattr("sys.argv", ["audits", "quick", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 130
    assert "1 of 2" in capsys.readouterr().err
    assert call("quick")[0] == 0
    assert ran == ["a"]


def test_a_report_runs_nothing(audits, call):
    audits(a=gives("holds"))
    call("quick")
    audits(a=raises(ValueError("ran")))
    assert call("report")[0] == 0


def test_sources_are_told_apart_by_what_lies_in_them(tmp_path):
    (tmp_path / "a.py").write_text("1")
    before = scope.scope(tmp_path).contents
    scope.scope.cache_clear()
    assert scope.scope(tmp_path).contents == before
    (tmp_path / "a.py").write_text("2")
    scope.scope.cache_clear()
    assert scope.scope(tmp_path).contents != before


def test_an_unknown_name_is_told(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["audits", "dp.nothing"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 3
    assert "dp.nothing" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["quick", "--nonsense"], ["run"], ["full", "--seed", "x"], ["verify-transcript"]])
def test_a_wrong_command_line_is_not_called_no_power(monkeypatch, words):
    monkeypatch.setattr("sys.argv", ["audits", *words])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 3


def test_the_table_is_in_order():
    names = [audit.name for audit in table.AUDITS]
    assert len(names) == len(set(names))
    for audit in table.AUDITS:
        assert audit.name.partition(".")[0] in table.ROOMS
        assert audit.seconds
        assert set(audit.seconds) <= {"quick", "full"}
    assert sum(audit.seconds.get("quick", 0) for audit in table.AUDITS) <= 600
    assert sum(audit.seconds.get("full", 0) for audit in table.AUDITS) <= 2700


@pytest.mark.parametrize(("audits_end", "ci_ends"), [(0, 0), (1, 1), (2, 0), (3, 1)])
def test_ci_fails_where_something_is_violated_and_not_where_a_tool_is_missing(tmp_path, audits_end, ci_ends):
    python = f"#!/bin/sh\nexit {audits_end}\n"
    for name, text in {".ci/run": (ROOT / ".ci/run").read_text(), ".venv/bin/python": python}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o700)
    (tmp_path / "Makefile").write_text("check:\n\t@true\n")
    assert subprocess.run([tmp_path / ".ci/run"], check=False).returncode == ci_ends
