"""What the compose file promises, without an engine: one coordinator and three sites in sandboxes with nothing else.

The root is read-only, the user has no entry in passwd and no home, and there is nothing to write to but what the
compose file declares. The image itself is not built here: that takes a base image from a registry of images.
"""

import importlib
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fedseg.credentials import make_credentials
from tests.support.tiny import tiny_study

ROOT = Path(__file__).parents[2]
CONTAINER = ROOT / "packaging/container"
NOBODY = "65532"
SITES = ("site-a", "site-b", "site-c")


def sandbox(volumes: dict[str, str], environment: dict[str, str]) -> list[str]:
    """The command in front of one that runs as in a service with these volumes (inside: outside)."""
    root: list[str] = []
    for entry in sorted(Path("/").iterdir()):
        if entry.is_symlink():
            root += ["--symlink", os.readlink(entry), str(entry)]
        elif entry.name not in ("proc", "dev", "sys", "tmp", "run"):
            root += ["--ro-bind", str(entry), str(entry)]
    mounted = [part for inside, outside in volumes.items() for part in ("--bind", outside, inside)]
    given = [part for name, value in environment.items() for part in ("--setenv", name, value)]
    own = ["--unshare-user", "--uid", NOBODY, "--gid", NOBODY, "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    inside = ["--dev", "/dev", "--proc", "/proc", *mounted, "--tmpfs", "/tmp", "--remount-ro", "/"]
    return ["bwrap", "--die-with-parent", *own, *root, *inside, "--clearenv", *given, "--chdir", "/state"]


def works() -> bool:
    if shutil.which("bwrap") is None:
        return False
    return subprocess.run([*sandbox({}, {})[:-2], "true"], capture_output=True, check=False).returncode == 0


def environment() -> dict[str, str]:
    """What the container file sets; the interpreter is this one."""
    text = (CONTAINER / "Containerfile").read_text()
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    found = dict(part.split("=", 1) for part in block.replace("\\\n", " ").split())
    return {**found, "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.skipif(not works(), reason="bubblewrap is not installed, or may not unshare here (apt install bubblewrap)")
def test_a_study_runs_with_a_read_only_root_a_user_that_nobody_knows_and_only_the_declared_folders(tmp_path):
    study = tiny_study(rounds=2)
    make_credentials(tmp_path / "credentials", study, "in-a-box")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    services = importlib.import_module("yaml").safe_load((CONTAINER / "compose.yaml").read_text())["services"]
    running: dict[str, subprocess.Popen[str]] = {}
    try:
        for name, service in services.items():
            config, state = tmp_path / name / "config", tmp_path / name / "state"
            shutil.copytree(tmp_path / "credentials", config / "credentials")
            state.mkdir()
            (config / "study.toml").write_text(study.toml())
            own = (
                f"port = {port}\n" if name == "coordinator" else f'site = "{name}"\ncoordinator = "127.0.0.1:{port}"\n'
            )
            told = f'study = "study.toml"\ncredentials = "credentials"\nout = "/state/runs"\n{own}'
            (config / f"{service['command'][0]}.toml").write_text(told)
            volumes = {volume.split(":")[1]: volume.split(":")[0] for volume in service["volumes"]}
            assert set(volumes) == {"/config", "/state", "/etc/machine-id"}
            box = sandbox({"/config": str(config), "/state": str(state)}, environment())
            look = "id -un; echo x > /etc/x; echo x > /x; echo x > $HOME/x && echo may"
            looked = subprocess.run([*box, "sh", "-c", look], capture_output=True, text=True, check=False)
            assert looked.stderr.count("Read-only file system") == 2
            assert "cannot find name" in looked.stderr
            assert looked.stdout.split() == [NOBODY, "may"]
            fedseg = [sys.executable, "-c", "from fedseg.cli import main; main()"]
            with (tmp_path / f"{name}.log").open("w") as log:
                running[name] = subprocess.Popen(
                    [*box, *fedseg, *service["command"]], stdout=log, stderr=log, text=True
                )
        for name, process in running.items():
            assert process.wait(300) == 0, (tmp_path / f"{name}.log").read_text()
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    for name in services:
        said = (tmp_path / f"{name}.log").read_text()
        assert "Traceback" not in said
        assert list((tmp_path / name / "state/runs").glob("tiny-*/report.html")), said
        written = {path.name for path in (tmp_path / name / "config").iterdir()}
        assert written == {"credentials", "study.toml", f"{services[name]['command'][0]}.toml"}
