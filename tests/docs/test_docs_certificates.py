"""The keys and certificates of "run a federation", made as the page says, are what a site and a coordinator take."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedseg.credentials import coordinator_tls, load_federation, signing_key, site_tls
from tests.support.tiny import tiny_study

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/howto/run-a-federation.md").read_text(encoding="utf-8")
NAMES = ("site-a", "site-b", "site-c", "coordinator")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_pages_lines_make_credentials(tmp_path):
    (block,) = re.findall(r"^```sh\n(# the authority, once.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    authority, party, _, signing, roster = block.strip().split("\n\n")
    calls = f'secagg() {{ "{sys.executable}" -c "from secagg.cli import main; main()" "$@"; }}\nset -e\n'

    def sh(lines: str) -> None:
        subprocess.run(["bash", "-c", calls + lines], cwd=tmp_path, check=True, capture_output=True)

    sh(authority)
    for name in NAMES:
        sh(party.replace("mkdir", "mkdir -p").replace("site-a", name))
    sh(signing)
    for name in ("site-b", "site-c"):
        sh(signing.replace("site-a", name))
    folder = tmp_path / "credentials"
    for name in NAMES:
        shutil.copy(folder / f"{name}.pub", tmp_path)
        shutil.copy(tmp_path / f"{name}.pem", folder)
    shutil.copy(tmp_path / "authority.pem", folder)
    sh(roster)
    (key,) = re.findall(r"[0-9a-f]{64}", (folder / "coordinator.pub").read_text())
    clients = (tmp_path / "roster.toml").read_text()
    (folder / "federation.toml").write_text(f'training_run = "first"\nserver_key = "{key}"\n\n{clients}')
    federation = load_federation(folder, tiny_study(seed=None))
    assert federation.server_key.hex() == key
    for name in NAMES:
        signing_key(folder, name)
        assert coordinator_tls(folder) if name == "coordinator" else site_tls(folder, name, federation)
