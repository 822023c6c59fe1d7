"""Configuration files of coordinator and site: one sentence for each mistake, and what comes before what."""

from pathlib import Path

import pytest
import typer.main

from fedseg.cli import app
from fedseg.cli.configured import fields_of
from fedseg.configuration import FILES, read_configuration
from fedseg.errors import ConfigError
from tests.support.command import is_one_sentence, run
from tests.support.tiny import tiny_study


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "study.toml").write_text(tiny_study().toml())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("FEDSEG_HOME", str(tmp_path / "home"))
    return tmp_path


def site_file(folder: Path, **fields: object) -> Path:
    given = {"study": "study.toml", "credentials": "keys", "site": "site-a", "coordinator": "127.0.0.1:1", **fields}
    path = folder / "site.toml"
    path.write_text("".join(f"{name} = {value!r}\n".replace("'", '"') for name, value in given.items()))
    return path


@pytest.mark.parametrize("command", FILES)
def test_a_file_has_a_field_for_every_option_that_can_stand_in_one(command):
    known = fields_of(typer.main.get_command(app).commands[command])
    assert set(FILES[command].model_fields) == set(known)


def test_paths_are_relative_to_the_file_whatever_folder_one_is_in(folder, capsys, monkeypatch):
    code, _, error = run(capsys, monkeypatch, "site", site_file(folder))
    assert code == 1
    assert is_one_sentence(error)
    assert f"{folder}/keys/federation.toml is missing" in error


def test_the_command_line_comes_first_then_the_environment_then_the_file(folder, capsys, monkeypatch):
    file = site_file(folder, credentials="of-the-file")
    assert "of-the-file/federation.toml" in run(capsys, monkeypatch, "site", file)[2]
    monkeypatch.setenv("FEDSEG_SITE_CREDENTIALS", "of-the-environment")
    assert "of-the-environment/federation.toml" in run(capsys, monkeypatch, "site", file)[2]
    typed = run(capsys, monkeypatch, "site", file, "--credentials", "typed")
    assert "typed/federation.toml" in typed[2]
    monkeypatch.setenv("FEDSEG_SITE_SITE", "site-z")
    assert "site 'site-z' is not in the study" in run(capsys, monkeypatch, "site", file)[2]
    monkeypatch.setenv("FEDSEG_SITE_STUDY", str(file))
    assert "site 'site-z' is not in the study" in run(capsys, monkeypatch, "site")[2]


def test_a_study_file_is_taken_as_before(folder, capsys, monkeypatch):
    typed = ("site", folder / "study.toml", "site-a", "--coordinator", "127.0.0.1:1", "--credentials", "typed")
    assert "typed/federation.toml is missing" in run(capsys, monkeypatch, *typed)[2]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"patiense": 3}, "unknown field 'patiense'; did you mean 'patience'?"),
        ({"colour": "red"}, "unknown field 'colour'; it may have study, credentials, out"),
        ({"patience": "long"}, "patience: input should be a valid number"),
        ({"patience": -1}, "patience: input should be greater than or equal to 0"),
        ({"coordinator": "no port"}, "coordinator: string should match pattern"),
        ({"data": ""}, "data: string should have at least 1 character"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_field(folder, capsys, monkeypatch, fields, sentence):
    code, _, error = run(capsys, monkeypatch, "site", site_file(folder, **fields))
    assert code == 1
    assert is_one_sentence(error)
    assert f"{folder}/site.toml: {sentence}" in error


def test_a_missing_field_is_named(folder):
    (folder / "coordinator.toml").write_text('study = "study.toml"\n')
    with pytest.raises(ConfigError, match=r"coordinator.toml: 'credentials' is missing; add it"):
        read_configuration(folder / "coordinator.toml", "coordinator")


def test_a_state_that_is_a_file_or_gone_is_told_before_anything_else(folder, capsys, monkeypatch):
    (folder / "note").write_text("")
    code, _, error = run(capsys, monkeypatch, "site", site_file(folder, state="note"))
    assert code == 1
    assert f"{folder}/note: is a file; give --state a folder" in error
    keys = folder / "keys"
    keys.mkdir()
    record = f'site = "site-a"\nserver_key = ""\naddress = ""\nstate = "{folder}/gone"\nnumber = 0\n'
    (keys / "site-a.enrolment.toml").write_text(record)
    code, _, error = run(capsys, monkeypatch, "site", site_file(folder))
    assert code == 1
    assert f"{folder}/gone: the state of site-a, fixed at its enrolment, is not there; mount or bring back" in error
