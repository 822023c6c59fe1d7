"""Text of others on a terminal or in a log: nothing in it acts, and a sentence stays one line."""

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from secagg.cli.terminal import app
from secagg.errors import ConfigError
from secagg.printable import printable
from secagg.terminal import plain, say

HOSTILE = {
    "escape": "\x1b[2J\x1b]0;title\x07",
    "C1": "\x9b31m\x85",
    "lines": "one\r\ntwo\u2028three\u2029four\x0bfive",
    "bidi": "\u202etxt.exe\u2066\u200f",
    "invisible": "a\u200bb\ufeffc\u00add",
    "tag": "\U000e0041",
    "surrogate": "\ud800\udcff",
    "nul": "\x00\x7f\b\t",
    "markup": "[bold]x[/] [/nothing] [link=https://example.org]here[/link] :skull: [@click=app.quit]q",
}
KEPT = "µ ü é 漢字 [1] 'quoted' \\ \"x\" 😀 ¬"


def test_what_is_visible_stays():
    assert printable(KEPT) == KEPT
    assert printable(17) == "17"


@pytest.mark.parametrize("kind", [kind for kind in HOSTILE if kind != "markup"])
def test_what_acts_is_written_out(kind):
    shown = printable(HOSTILE[kind])
    assert shown.isprintable()
    assert "\\" in shown


def test_how_it_is_written():
    assert printable("\x1b[1m\n\u202e\ud800\U000e0041") == r"\x1b[1m\n\u202e\ud800\U000e0041"


@given(st.text(st.characters()), st.sampled_from(["utf-8", "ascii", "latin-1", "cp1252"]))
def test_every_text_can_be_printed_everywhere(text, encoding):
    shown = printable(text, encoding)
    assert shown.encode(encoding).decode(encoding) == shown
    assert all(unicodedata.category(c)[0] not in "C" and c not in "\u2028\u2029\r\n" for c in shown)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_sentence_is_one_line_as_it_stands(kind, terminal):
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n")
    say(f"before {HOSTILE[kind]} after", console=Console(file=file, force_terminal=terminal, color_system="standard"))
    file.flush()
    shown = file.buffer.getvalue().decode()
    assert shown == f"before {printable(HOSTILE[kind])} after\n"


def test_a_style_is_ours_and_never_the_texts():
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
    say(plain("\x1b[31m[red]x[/]", "bold", console=console), " [blue]y", console=console)
    assert console.file.getvalue() == "\x1b[1m\\x1b[31m[red]x[/]\x1b[0m [blue]y\n"


def test_a_hostile_file_name_cannot_write_to_the_terminal(tmp_path, monkeypatch):
    path = tmp_path / "\x1b[2J[bold]\n.pub"
    path.write_text("nonsense")
    result = CliRunner().invoke(app, ["roster", str(path), "--out", str(tmp_path / "roster.toml")])
    assert result.exit_code == 1
    assert "\x1b" not in result.output
    assert result.output.count("\n") == 1
    assert r"\x1b[2J[bold]\n.pub is not a public key file" in result.output


def test_an_error_of_the_library_cannot_write_to_the_terminal(monkeypatch, tmp_path):
    def broken(*_, **__):
        raise ConfigError(HOSTILE["escape"] + HOSTILE["markup"])

    monkeypatch.setattr("secagg.cli.keygen.SigningKey.generate", broken)
    result = CliRunner().invoke(app, ["keygen", "a", "--folder", str(tmp_path)])
    assert result.output == f"secagg: {printable(HOSTILE['escape'] + HOSTILE['markup'])}\n"
