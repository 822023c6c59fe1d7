"""The README's commands print what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_readmes_commands_print_what_it_says(tmp_path):
    """Every shown line, in its order; `...` stands for any number of lines."""
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    block = re.search(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    commands = re.split(r"^\$ ", block[1], flags=re.MULTILINE)[1:]
    assert len(commands) == 4
    for command in commands:
        line, *shown = command.splitlines()
        name, *arguments = line.split()
        done = subprocess.run(
            [sys.executable, "-c", f"from {name}.cli import main; main()", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        printed = iter(done.stdout.splitlines())
        for wanted in shown:
            assert wanted == "..." or wanted in printed, f"{line}: {wanted}\n{done.stdout}"
