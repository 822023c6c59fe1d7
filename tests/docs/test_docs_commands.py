"""Every command that a page shows exists with the options that it is shown with, and the short ones run."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import typer.main

import fedseg.cli
import secagg.cli

ROOT = Path(__file__).parents[2]
TEXTS = [
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "examples/README.md",
    ROOT / "tests/README.md",
    *sorted((ROOT / "studies").glob("*.toml")),
]
APPS = {"secagg": secagg.cli, "fedseg": fedseg.cli}
# On a line of its own in a block of code, after "$ " or "# " or nothing; or in backticks within a sentence.
SHOWN = re.compile(r"^(?:\$ |# )?((?:secagg|fedseg) [a-z-].*)$|`((?:secagg|fedseg) [a-z-][^`\n]*)`", re.MULTILINE)


def commands(text: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks = "\n".join(body for language, body in fenced if language in ("", "sh", "console"))
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    found = [line for line, _ in SHOWN.findall(blocks) if line] + [span for _, span in SHOWN.findall(prose) if span]
    return [part.strip() for line in found for part in re.sub(r"\s#.*", "", line).split(" ; ")]


def problem(command: str) -> str:
    """What is wrong with a command as it is shown; empty where nothing is."""
    name, *words = command.split()
    found = typer.main.get_command(APPS[name].app)
    while hasattr(found, "commands"):
        if not words or words[0].startswith("-"):
            break
        if words[0] not in found.commands:
            return f"{name} has no command {words[0]}"
        found = found.commands[words.pop(0)]
    options = {option for one in found.params for option in one.opts} | {"-h", "--help"}
    given = [word.partition("=")[0] for word in words if re.fullmatch(r"--?[a-z].*", word)]
    return next((f"{command}: there is no {option}" for option in given if option not in options), "")


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_command_that_is_shown_exists_with_its_options(page):
    assert [found for command in commands(page.read_text(encoding="utf-8")) if (found := problem(command))] == []


def test_a_command_that_does_not_exist_is_found():
    shown = commands("```sh\nfedseg simulate x --datta y   # why\nsecagg verify x\n```\nSee `fedseg marks show`.\n")
    assert [problem(one) for one in shown] == [
        "fedseg simulate x --datta y: there is no --datta",
        "secagg has no command verify",
        "fedseg has no command marks",
    ]
    assert sum(len(commands(page.read_text(encoding="utf-8"))) for page in TEXTS) > 60


def test_the_minute_of_the_auditors_page_is_one(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs/howto/verify-a-transcript.md").read_text(encoding="utf-8")
    block = re.search(r"## In one minute\n\n```sh\n(.*?)```", page, re.DOTALL)
    assert block is not None
    monkeypatch.chdir(tmp_path)
    said = ""
    for line in block[1].splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
        try:
            APPS[sys.argv[0]].main()
        except SystemExit as ended:
            assert not ended.code  # noqa: PT017
        said = capsys.readouterr().out
    assert "Everything holds." in said
    transcript = tmp_path / "round.transcript"
    data = bytearray(transcript.read_bytes())
    data[len(data) // 2] ^= 1
    transcript.write_bytes(data)
    with pytest.raises(SystemExit, match="1"):
        APPS["secagg"].main()
