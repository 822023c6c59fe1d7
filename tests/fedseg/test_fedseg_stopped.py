"""`fedseg site` as a process: SIGTERM ends it within seconds, with one sentence and a status of its own."""

import os
import signal
import socket
import subprocess
import sys
import time

from fedseg.credentials import make_credentials
from tests.support.tiny import tiny_study


def test_a_site_that_waits_for_its_coordinator_ends_on_sigterm_with_a_sentence(tmp_path):
    study = tiny_study()
    make_credentials(tmp_path / "keys", study, "run")
    (tmp_path / "study.toml").write_text(study.toml(), encoding="utf-8")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        command = [
            *(sys.executable, "-m", "fedseg.cli", "site", "study.toml", "site-a", "--credentials", "keys"),
            *("--coordinator", f"127.0.0.1:{nobody.getsockname()[1]}", "--state", "state"),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        site = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            while not list(tmp_path.glob("state/*.running")):
                assert site.poll() is None, site.stderr.read()
                time.sleep(0.05)
            site.send_signal(signal.SIGTERM)
            _, said = site.communicate(timeout=300)
        finally:
            site.kill()
    assert (site.returncode, said.count("\n")) == (75, 1), said
    assert "SIGTERM came; nothing is lost: the same command takes part again" in said
