"""`secagg` and `fedseg` are called alike, print on any terminal, and say what is missing in one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

import fedseg.cli
import secagg.cli
from fedseg.ledger.chain import START, next_line
from fedseg.ledger.entries import NoisySteps
from secagg import SigningKey
from tests.support.tiny import tiny_study

ROOT = Path(__file__).parents[2]
APPS = {"secagg": secagg.cli.app, "fedseg": fedseg.cli.app}
BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError("No module named " + name, name=name)
sys.meta_path.insert(0, Blocked())
"""
OF_EXTRAS = ("dp_accounting", "grpc", "grpc_health", "jinja2", "matplotlib", "monai", "nibabel", "opacus", "torch")
"""Without pydantic, which typer itself brings since 0.29."""


def process(program: str, *arguments: object, **environment: str | None) -> subprocess.CompletedProcess[bytes]:
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment}
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        env={name: value for name, value in settings.items() if value is not None},
        check=False,
    )


def commands(app) -> list[list[str]]:
    def walk(group, path):
        for name, command in getattr(group, "commands", {}).items():
            if hasattr(command, "commands"):
                yield from walk(command, [*path, name])
            else:
                yield [*path, name]

    return list(walk(typer.main.get_command(app), []))


@pytest.mark.parametrize("name", APPS)
def test_every_command_has_help_in_two_spellings_and_quiet(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    for path in [[], *commands(APPS[name])]:
        shown = []
        for flag in ("-h", "--help"):
            typer.main.get_command(APPS[name]).main([*path, flag], prog_name=name, standalone_mode=False)
            shown.append(capsys.readouterr().out)
        assert shown[0] == shown[1]
        assert max(map(len, shown[0].splitlines())) <= 60
        assert shown[0].isascii()
        assert not path or "--quiet" in shown[0]


@pytest.mark.parametrize("name", APPS)
def test_the_command_has_a_version_and_completion(name):
    version = CliRunner().invoke(APPS[name], ["--version"])
    assert version.exit_code == 0
    assert version.output.startswith(f"{name} ")
    help_ = CliRunner().invoke(APPS[name], ["--help"], env={"COLUMNS": "100"}).output
    assert "--install-completion" in help_
    assert "--show-completion" in help_


def test_help_eats_no_brackets():
    """Rich once took "[policy]" for markup."""
    output = CliRunner().invoke(secagg.cli.app, ["verify-transcript", "-h"], env={"COLUMNS": "200"}).output
    assert "the table [policy]" in output


def test_quiet_leaves_errors_only(tmp_path):
    said = CliRunner().invoke(secagg.cli.app, ["keygen", "a", "--folder", str(tmp_path), "--quiet"])
    assert (said.exit_code, said.output) == (0, "")
    again = CliRunner().invoke(secagg.cli.app, ["keygen", "a", "--folder", str(tmp_path), "-q"])
    assert again.exit_code == 1
    assert "exists already" in again.output
    loud = CliRunner().invoke(secagg.cli.app, ["keygen", "b", "--folder", str(tmp_path)])
    assert "keep this file" in loud.output


@pytest.mark.parametrize(
    ("app", "groups"),
    [(secagg.cli.app, ["enrol", "marks"]), (fedseg.cli.app, ["data", "encrypted", "enrol", "ledger"])],
    ids=["secagg", "fedseg"],
)
def test_what_a_command_is_for_stands_whole_in_the_list(app, groups):
    for group in ([], *([name] for name in groups)):
        said = CliRunner().invoke(app, [*group, "-h"], env={"COLUMNS": "80"}).output.partition("Commands:")[2]
        assert said
        assert [line for line in said.splitlines() if line.endswith("...")] == []


def test_help_lists_commands_as_people_come_to_them():
    said = CliRunner().invoke(fedseg.cli.app, ["-h"], env={"COLUMNS": "80"}).output.partition("Commands:")[2]
    listed = [line.split()[0] for line in said.splitlines() if line.startswith("  ") and not line.startswith("   ")]
    assert [name for name in listed if name in fedseg.cli.ORDER] == list(fedseg.cli.ORDER)


@pytest.mark.parametrize("words", [("show",), ("verify", "--delta", "1e-5"), ("epsilon", "--delta", "1e-5")])
def test_who_reads_a_ledger_does_not_wait_for_torch(words, tmp_path):
    about = {"study_hash": "ab" * 32, "site": "a", "training_run": "r", "unit": "patient"}
    noise = {"sample_rate": 0.5, "noise_multiplier": 2.0, "clip_norm": 1.0, "denominator": 10.0, "steps": 5}
    _, data = next_line(START, NoisySteps(**about, **noise, round_number=1, generator="os"), SigningKey.generate())
    (tmp_path / "ledger.jsonl").write_bytes(data)
    verb, *more = words
    program = BLOCK.format(names=("torch", "monai")) + "import fedseg.cli; fedseg.cli.main()"
    said = process(program, "ledger", verb, tmp_path / "ledger.jsonl", *more, HOME=str(tmp_path))
    assert (said.returncode, said.stderr) == (0, b"")
    assert len(said.stdout.splitlines()) >= 1


def test_json_is_one_object(tmp_path):
    study = tmp_path / "study.toml"
    study.write_text(tiny_study(rounds=1).toml())
    plan = json.loads(CliRunner().invoke(fedseg.cli.app, ["epsilon", str(study), "--json"]).output)
    assert plan["epsilon"] <= plan["budget"] == 8.0
    found = json.loads(CliRunner().invoke(fedseg.cli.app, ["data", "check", str(study), "--json"]).output)
    assert {finding["severity"] for finding in found["findings"]} == {"info"}
    assert (
        "server"
        in json.loads(CliRunner().invoke(secagg.cli.app, ["policy", "--clients", "5", "--json"]).output)[
            "To read one input"
        ]
    )
    study.write_text(tiny_study(rounds=1, mechanism="none").toml())
    none = json.loads(CliRunner().invoke(fedseg.cli.app, ["epsilon", str(study), "--json"]).output)
    assert none["epsilon"] is None


@pytest.mark.parametrize(
    ("encoding", "look"), [("ascii", {"TERM": "dumb"}), ("cp1252", {"NO_COLOR": "1"}), ("utf-8", {"COLUMNS": "60"})]
)
def test_any_terminal_is_written_to(encoding, look, tmp_path):
    """A folder and a site whose letters the code page lacks, brackets in both: shown, and no traceback."""
    study = tmp_path / "x[" / "y] Łódź.toml"
    study.parent.mkdir()
    study.write_text(tiny_study(rounds=1).toml().replace("structures = ", "structurez = "), encoding="utf-8")
    done = process(
        "from fedseg.cli import main; main()", "credentials", study, tmp_path / "c", PYTHONIOENCODING=encoding, **look
    )
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"\x1b" not in done.stderr
    assert "x[/y] " in done.stderr.decode(encoding)


@pytest.mark.parametrize(
    "name", ["simulate", "epsilon", "data check", "credentials", "predict", "report", "coordinator", "site", "demo"]
)
def test_without_the_extra_each_command_names_it(name, tmp_path):
    study = tmp_path / "study.toml"
    study.write_text(tiny_study().toml())
    given = {
        "credentials": [study, tmp_path / "c"],
        "predict": [study, study, study],
        "report": [tmp_path],
        "coordinator": [study, "--credentials", tmp_path],
        "site": [study, "a", "--coordinator", "x:1", "--credentials", tmp_path],
        "demo": [],
    }.get(name, [study])
    blocked = BLOCK.format(names=OF_EXTRAS)
    done = process(blocked + "from fedseg.cli import main; main()", *name.split(), *given)
    said = done.stderr.decode()
    assert done.returncode == 1
    assert said.startswith("fedseg: needs ")
    assert said.endswith("which is not installed; run: pip install 'secagg[fedseg]'\n")
    assert said.count("\n") == 1


def test_the_data_room_without_torch_names_the_extra():
    done = process("import sys; sys.modules['torch'] = None; import fedseg.data")
    told = "fedseg needs torch, which is not installed; run: pip install 'secagg[fedseg]'"
    assert done.stderr.decode().splitlines()[-1] == f"ModuleNotFoundError: {told}"


def test_help_and_version_need_no_extra():
    blocked = BLOCK.format(names=OF_EXTRAS)
    for flag in ("-h", "--version"):
        done = process(blocked + "from fedseg.cli import main; main()", flag)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("missing", ["grpc", "grpc_health"])
@pytest.mark.parametrize("room", ["secagg.rpc", "secagg.rpc.tls", "secagg.rpc.client"])
def test_rpc_without_its_extra_names_it(missing, room):
    done = process(BLOCK.format(names=(missing,)) + f"import {room}")
    assert f"secagg.rpc needs {missing}, which is not installed; run: pip install 'secagg[rpc]'" in done.stderr.decode()


def test_secagg_itself_needs_no_extra():
    program = BLOCK.format(names=OF_EXTRAS) + "from secagg.cli import main; main()"
    done = process(program, "demo", "--clients", 4, "--length", 10, "--drop", 1)
    assert done.returncode == 0, done.stderr


def test_a_user_without_name_and_home_can_train(tmp_path):
    """A container's user: MONAI asks for the name on import, and the cache of starts for a home."""
    study = tmp_path / "study.toml"
    study.write_text(tiny_study(rounds=1).toml())
    program = """
import pwd
def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = getpwuid
from fedseg.start import _cache_folder
assert _cache_folder() is None
from fedseg.cli import main
main()
"""
    nobody: dict[str, None] = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME", "LNAME", "USERNAME"))
    done = process(program, "simulate", study, "--out", tmp_path / "runs", "--plain", **nobody)
    assert done.returncode == 0, done.stderr.decode()[-1500:]
