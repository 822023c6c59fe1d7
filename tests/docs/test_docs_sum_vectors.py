"""The page that adds vectors with `secagg serve` and `secagg join`: every command of it runs."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from secagg import Policy
from secagg.keys import SigningKey

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/howto/sum-vectors.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n# (at [^\n]*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
(POLICY,) = re.findall(r"^```toml\n# policy.toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SITES = ("site-a", "site-b", "site-c")


def test_the_policy_that_the_page_shows_is_one():
    table = tomllib.loads(POLICY.replace("...", SigningKey.generate().verify_key.hex()))["policy"]
    assert Policy.from_table(table).clients == len(SITES)
    assert len(BLOCKS) == PAGE.count("```sh\n")


@pytest.mark.slow
def test_every_command_of_the_page_runs_to_a_sum_that_is_verified(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    tokens: dict[str, str] = {}
    running: list[subprocess.Popen[str]] = []
    try:
        for where, lines in BLOCKS:
            if "secagg serve " in lines:
                agree(tmp_path)
            for name, line in commands(where, lines, port):
                if "leave it running" in where:
                    running.append(started(line, tmp_path))
                    continue
                if "verify" in line:
                    assert [process.wait(300) for process in running] == [0] * (1 + len(SITES))
                said = done(line, tmp_path, tokens.get(name, ""))
                tokens.update(re.findall(r"^(\S+)\.invitation.*\ntoken, .*: (\S+)$", said, re.MULTILINE))
            if "publish" in lines:
                shutil.copy(tmp_path / "server/federation.toml", tmp_path)
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert "Everything holds." in said
    for sums in (tmp_path / "server/sums", tmp_path / "site-b/sums"):
        np.testing.assert_allclose(np.load(sums / "0001.npy"), [6.0, 7.5, -6.0], atol=0.1)
        assert json.loads((sums / "0001.json").read_text())["included"] == list(SITES)


def commands(where: str, lines: str, port: str) -> list[tuple[str, str]]:
    """Each line for each party that runs it, with whom it is about."""
    text = lines.strip().replace("coordinator.example.org", "127.0.0.1").replace("7443", port)
    if "coordinator" in where:
        return [(next((site for site in SITES if site in line), ""), line) for line in text.splitlines()]
    text = text.replace("vector.json", "site-a.json").replace("--out sums", "--out site-a/sums")
    return [(site, text.replace("site-a", site)) for site in SITES]


def agree(folder: Path) -> None:
    """What everybody writes by hand: the policy, and a vector of their own."""
    key = tomllib.loads((folder / "federation.toml").read_text())["server_key"]
    for name in ("server", *SITES):
        (folder / name / "policy.toml").write_text(POLICY.replace("...", key))
    for number, site in enumerate(SITES, 1):
        (folder / f"{site}.json").write_text(json.dumps([number, 2.5, -number]))


def started(lines: str, folder: Path) -> "subprocess.Popen[str]":
    command = f"secagg() {{ {sys.executable} -c 'from secagg.cli import main; main()' \"$@\"; }}\n{lines.strip()}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        ["bash", "-ec", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def done(lines: str, folder: Path, typed: str) -> str:
    """What a command prints; where it asks for a token it is told this one."""
    process = started(lines, folder)
    said, _ = process.communicate(f"{typed}\n", timeout=600)
    assert process.returncode == 0, (lines, said)
    return said
