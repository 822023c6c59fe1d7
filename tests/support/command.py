"""The command `fedseg` as a person types it, in this process."""

import sys

from fedseg import cli
from tests.support.tiny import tiny_study


def run(capsys, monkeypatch, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["fedseg", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


def is_one_sentence(error: str) -> bool:
    return error.startswith("fedseg:") and error.count("\n") == 1 and "Traceback" not in error


def feta_study() -> str:
    return tiny_study(rounds=1).toml().replace('layout = "phantom"', 'layout = "feta"').replace("patients = 4", "")
