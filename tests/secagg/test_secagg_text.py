"""Text files as people save them: read as they are meant, or refused in one sentence that gives nothing away."""

import codecs
import os

import pytest
from typer.testing import CliRunner

from secagg import ConfigError
from secagg.cli import app
from secagg.text import kind_of, read_text

PLAIN = 'id = "bern"\nname = "Zürich \u0141ódź"\n'
HOW = {
    "UTF-8": lambda text: text.encode(),
    "UTF-8 with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "UTF-16 of Windows": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "UTF-16 of old Macs": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "UTF-32": lambda text: codecs.BOM_UTF32_LE + text.encode("utf-32-le"),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "CR": lambda text: text.replace("\n", "\r").encode(),
    "CRLF in UTF-16": lambda text: codecs.BOM_UTF16_LE + text.replace("\n", "\r\n").encode("utf-16-le"),
}
NOT_TEXT = {
    "Latin-1": (
        b'id = "bern"\nname = "Z\xfc"\n',
        "line 2 is not UTF-8 (Latin-1 or Windows-1252?); save the",
    ),
    "UTF-16 without a mark": (PLAIN.encode("utf-16-le"), "is not text, or UTF-16 without its mark; save it as UTF-8"),
    "half a UTF-16": (codecs.BOM_UTF16_LE + b"a\x00b", "is not UTF-16, as its first bytes say; save the file as UTF-8"),
    "AppleDouble": (b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X", "is what macOS keeps beside a file of this name"),
    "Thumbs.db": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is a file of Windows' own (Thumbs.db)"),
    "an archive": (b"PK\x03\x04\x14\x00", "is a zip archive, or a document of Office"),
    "a web page": (codecs.BOM_UTF8 + b"<!DOCTYPE html><html>", "is a web page"),
    "a picture": (b"\x89PNG\r\n", "is a PNG picture"),
}


@pytest.mark.parametrize("how", HOW)
def test_a_text_is_read_as_it_was_meant(how, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(HOW[how](PLAIN))
    assert read_text(path) == PLAIN


@pytest.mark.parametrize("how", NOT_TEXT)
def test_what_is_no_text_is_named(how, tmp_path):
    data, sentence = NOT_TEXT[how]
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        read_text(path)
    assert str(caught.value).startswith(str(path))
    assert sentence in str(caught.value)


def test_names_in_an_old_code_page_are_kept_as_the_folder_has_them(tmp_path):
    path = tmp_path / "list"
    path.write_bytes("sub-é\n".encode("latin-1"))
    assert read_text(path, names=True) == os.fsdecode("sub-é\n".encode("latin-1"))


def test_a_dicom_file_is_known_by_its_128th_byte():
    assert kind_of(bytes(128) + b"DICM") == "a DICOM file"
    assert kind_of(b"id = 1") == ""


@pytest.mark.parametrize("how", HOW)
def test_the_commands_files_may_be_saved_so(how, tmp_path):
    """Keys, roster and policy, through the command: what an editor did to them does not matter."""

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.output

    for name in ("a", "b", "c"):
        run("keygen", name, "--folder", tmp_path)
    for path in tmp_path.glob("*.pub"):
        path.write_bytes(HOW[how](path.read_text()))
    assert "3 clients" in run("roster", *sorted(tmp_path.glob("*.pub")), "--out", tmp_path / "roster.toml")
    run("demo", "--clients", "4", "--drop", "0", "--length", "10", "--transcript", tmp_path / "t")
    for name in ("t.roster.toml", "t.policy.toml"):
        (tmp_path / name).write_bytes(HOW[how]((tmp_path / name).read_text()))
    own = ("--roster", tmp_path / "t.roster.toml", "--policy", tmp_path / "t.policy.toml")
    assert "Everything holds." in run("verify-transcript", tmp_path / "t", *own)


def test_a_key_in_the_wrong_file_is_not_shown(tmp_path):
    path = tmp_path / "bern.pub"
    path.write_bytes(b"\xfftop secret")
    result = CliRunner().invoke(app, ["roster", str(path)], env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert "secret" not in result.output
    assert "0xff" not in result.output
