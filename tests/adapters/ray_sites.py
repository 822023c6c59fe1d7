"""A study whose sites are actors of a Ray cluster, and the same in one process; run in the environment of Ray.

The first run is held against a plain sum in this process, bit for bit. In the second the process of one actor is killed
while it trains.
"""

import json
import os
import signal
import tempfile
from pathlib import Path

from fedseg.data.loading import load_cohort
from fedseg.runfolder import RunFolder
from fedseg.simulate import Options, simulate
from tests.support.tiny import tiny_study

STUDY = tiny_study(sites=4, rounds=2)


def trained(folder: Path, options: Options, *listeners) -> tuple[str, list[dict]]:
    with RunFolder.create(folder, STUDY, *listeners) as run:
        done = simulate(run, load_cohort(None, STUDY), options)
    events = [json.loads(line) for line in (done / "events.jsonl").read_text().splitlines()]
    return (done / "model.safetensors").read_bytes().hex(), [event for event in events if event["kind"] == "end_round"]


def workers() -> list[int]:
    """The processes of the sites."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::_Site"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return sorted(found)


class Killer:
    """Kills one site in the first round, once all have shared keys and are about to train."""

    def __init__(self) -> None:
        self.killed = 0

    def __call__(self, event) -> None:
        if event.kind == "close" and event.step == "ShareReport" and not self.killed:
            self.killed = workers()[0]
            os.kill(self.killed, signal.SIGKILL)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        plain, _ = trained(Path(folder) / "plain", Options(plain=True))
        model, rounds = trained(Path(folder) / "ray", Options(ray="local"))
        killer = Killer()
        _, with_a_death = trained(Path(folder) / "killed", Options(ray="local"), killer)
    told = {
        "same model": model == plain,
        "included": [len(ended["included"]) for ended in rounds],
        "exact": [ended["exact"] for ended in rounds],
        "killed": killer.killed,
        "included with a death": [len(ended["included"]) for ended in with_a_death],
        "dropped": [len(ended["dropped"]) for ended in with_a_death],
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
