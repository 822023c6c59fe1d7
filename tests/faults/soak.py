"""Many rounds with a random fault in each, in one federation of real processes; goes on where it was ended.

python tests/faults/soak.py --rounds 1000 --seed 1 [--folder FOLDER] [--for SECONDS]

Five sites, d = 10,000. A fault strikes the coordinator or a site at a random point of a round; the coordinator is
held before each round until the next fault is prepared. After each round its sum is compared with the plain one, bit
for bit, and memory, descriptors, threads and files of every process are written down: FOLDER/soak.jsonl, a line a
round. It goes on where it was ended, with the coordinator's journal and the sites' marks. Where a round stands still
because sites wait for their operators (C-05: two were lost after others had released shares), the operators accept by
name, with the command that the site printed; that is counted. Once all rounds are through, everybody has to end with
status 0. At the end: how many rounds, how many with a sum in their first attempt, and what a process took at first and
at last, of those that lived for 20 rounds or more.
"""

import argparse
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.federation import COORDINATOR, Federation, federation
from tests.faults.parties import BETWEEN, FLIP, HOLD, KILL, POINTS, STEP_OF, TWICE, Strike, until

SITES = tuple(f"site-{letter}" for letter in "abcde")
LENGTH = 10_000
AHEAD = 8
"""Numbers that may be burned between two sums; the sites hold a vector for each."""
LONG_LIFE = 20
STEP_SECONDS = 30.0
"""Longer than a busy machine takes for a step; a site that is lost is known by its connection long before."""
STANDS_SECONDS = 90.0
"""After which operators look why there is no sum; every deadline of a round is shorter."""
ASKS = "has to run beside this process: "
"""Before the commands with which a site's operator accepts rounds."""
AT_LEAST = 3
"""Rounds of a life that are passed over before its growth is measured: buffers and caches fill first."""


@dataclass
class Soak:
    """The soak that runs."""

    made: Federation
    chance: random.Random
    lives: Counter[str] = field(default_factory=Counter)
    rests: bool = False
    accepted: set[str] = field(default_factory=set)
    looked: float = 0.0
    last: int = 0
    waits: bool = False
    complete: bool = False

    def start(self) -> None:
        """Start everybody; the coordinator waits before each round."""
        self.serve()
        for site in SITES:
            self.join(site)

    def serve(self) -> None:
        """Start the coordinator, or start it again."""
        self.lives[COORDINATOR] += 1
        self.waits = False
        self.made.serve(Strike(BETWEEN, HOLD))

    def join(self, site: str) -> None:
        """Start a site, or start it again."""
        self.lives[site] += 1
        self.made.join(site)

    # --- Faults: each happens in the round that begins now, and is mended before it returns --------------------------

    def nothing(self) -> str:
        """No fault: that of the round before may cost its site this one, and two are more than the policy allows."""
        self._go_on()
        return "none"

    def went_through(self) -> str:
        """The run came to its end before the coordinator was held once more: nothing can strike this round."""
        return "none, it went through with the one before"

    def site_killed(self) -> str:
        """Killed at a step, started again at once."""
        site, point = self.chance.choice(SITES), self.chance.choice(POINTS)
        self.made.parties[site].strike(Strike(point, KILL))
        self._go_on()
        if self._struck(lambda: not self.made.parties[site].alive):
            self.join(site)
        return f"{site} killed at {point}"

    def coordinator_killed(self) -> str:
        """Killed at a step, the same command at once."""
        point = self.chance.choice(POINTS)
        self.made.coordinator.strike(Strike(point, KILL))
        self._go_on()
        if self._struck(lambda: not self.made.coordinator.alive):
            self.serve()
        return f"coordinator killed at {point}"

    def coordinator_stopped(self) -> str:
        """SIGTERM at a step, the same command at once."""
        self._go_on()
        time.sleep(self.chance.random() * 0.5)
        self._signal(COORDINATOR, signal.SIGTERM)
        status = self.made.coordinator.status(20)
        self.serve()
        return f"coordinator terminated, status {status}"

    def both_killed(self) -> str:
        """The coordinator at a step, and a site while it is away."""
        site, point = self.chance.choice(SITES), self.chance.choice(POINTS)
        self.made.coordinator.strike(Strike(point, KILL))
        self._go_on()
        if self._struck(lambda: not self.made.coordinator.alive):
            self.made.parties[site].kill()
            self.serve()
            self.join(site)
        return f"coordinator killed at {point}, and {site}"

    def sent_twice(self) -> str:
        """A message arrives twice."""
        return self._at_a_site(TWICE)

    def corrupted(self) -> str:
        """A bit of a message flips at the site."""
        return self._at_a_site(FLIP)

    def suspended(self) -> str:
        """A process stands still for a while."""
        name = self.chance.choice([COORDINATOR, *SITES])
        self._go_on()
        time.sleep(self.chance.random() * 0.5)
        self._signal(name, signal.SIGSTOP)
        time.sleep(self.chance.random() * 3)
        self._signal(name, signal.SIGCONT)
        return f"{name} suspended"

    def wire_cut(self) -> str:
        """The wire of the last site is cut after a random number of bytes."""
        before = self.made.proxy.connections
        self.made.proxy.cut_after(self.chance.randrange(1, 30_000))
        self._go_on()
        self._struck(lambda: self.made.proxy.connections > before)
        self.made.proxy.clear()
        return "wire cut"

    def wire_corrupted(self) -> str:
        """Bits flip on the wire of the last site."""
        before = self.made.proxy.connections
        self.made.proxy.corrupt(self.chance.randrange(1, 20))
        self._go_on()
        self._struck(lambda: self.made.proxy.connections > before)
        self.made.proxy.clear()
        return "wire corrupted"

    def _signal(self, name: str, number: int) -> None:
        with suppress(ProcessLookupError):  # the run may have come to its end meanwhile
            self.made.parties[name].signal(number)

    def _at_a_site(self, act: str) -> str:
        site, point = self.chance.choice(SITES), self.chance.choice(tuple(STEP_OF.values()))
        self.made.parties[site].strike(Strike(point, act))
        self._go_on()
        return f"{site} {act} at {point}"

    def _struck(self, happened: Callable[[], bool]) -> bool:
        """Wait until a fault has happened, or the round is over without it: it may still strike a later one."""
        until(lambda: happened() or self._over(), "a fault struck, or the round is over", 900)
        return happened()

    def _go_on(self) -> None:
        self.waits = False
        self.made.coordinator.strike(Strike(BETWEEN, HOLD))
        self.made.coordinator.go_on()

    # --- One round ---------------------------------------------------------------------------------------------------

    def round(self, last: int) -> dict[str, Any]:
        """A fault and a round; what is written down about it.

        Args:
            last: number of the round before.
        """
        self.last = last
        self._start_the_dead()
        until(lambda: self._held() or self.complete, "the coordinator waits before a round, or is at the end", 600)
        self._start_the_dead()
        fault = Soak.nothing if self.rests else self.chance.choice(FAULTS)
        if self.complete:
            fault = Soak.went_through
        self.rests = fault in TWO_ROUNDS
        for number in range(last + 1, last + 1 + AHEAD):
            self.made.write_vectors(number)
        for site in SITES:
            (self.made.folder / site / "vectors" / f"{last:04d}.npy").unlink(missing_ok=True)
        began = self.looked = time.monotonic()
        before = len(self.accepted)
        said = fault(self)
        number = until(lambda: self._over() and self._finished(), f"a round after {last} has a sum; {said}", 900)
        self.made.check_sum(number)
        return {
            "round": number,
            "fault": said,
            "seconds": round(time.monotonic() - began, 2),
            "attempts": self.made.attempts(number) + number - last - 1,
            "included": len(self.made.included(number)),
            "accepted": len(self.accepted) - before,
            "processes": {
                name: {"life": self.lives[name], **found}
                for name, party in self.made.parties.items()
                if party.alive and (found := _resources(party.process.pid))
            },
            "files": {name: _files(self.made.folder / name) for name in SITES} | {"server": _files(self.made.state)},
        }

    def end(self) -> None:
        """After the last round everybody ends with status 0, also who was killed in it and is started again."""
        self._start_the_dead()
        until(lambda: self._held() or self.complete, "the coordinator has told everybody the end", 120)
        for site in SITES:
            assert self.made.parties[site].status() == 0, self.made.parties[site].said()

    def _finished(self) -> int:
        """The round with the next sum, once it is there; a number that was burned is passed over."""
        return next(filter(self.made.finished, range(self.last + 1, self.last + 1 + AHEAD)), 0)

    def _start_the_dead(self) -> None:
        for site in SITES:
            if not self.made.parties[site].alive:
                self.join(site)

    def _held(self) -> bool:
        """Whether the coordinator waits before an attempt; one that a late strike ended is started again."""
        self.complete = self.made.coordinator.process.exitcode == 0
        if not self.made.coordinator.alive and not self.complete:
            self.serve()
        self.waits = self.waits or self.made.coordinator.is_held()
        return self.waits

    def _over(self) -> bool:
        """Whether the round is; meanwhile another attempt goes on at once, and operators look where it stands still."""
        if (self._held() or self.complete) and self._finished():
            return True
        if self.waits:
            self._go_on()
        if time.monotonic() - self.looked > STANDS_SECONDS:
            self.looked = time.monotonic()
            self._start_the_dead()
            self._accept()
        return False

    def _accept(self) -> None:
        """What the operators of the sites that wait for them do: run the commands that their sites printed."""
        said = [event["text"] for site in SITES for event in self.made.parties[site].events("note")]
        asked = {command for text in said if ASKS in text for command in text.partition(ASKS)[2].split("; ")}
        for command in sorted(asked - self.accepted):
            run = [sys.executable, "-c", "from secagg.cli import main; main()", *shlex.split(command)[1:], "--yes"]
            subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
        self.accepted |= asked


FAULTS: list[Callable[[Soak], str]] = [
    *[Soak.site_killed] * 3,
    *[Soak.coordinator_killed] * 2,
    Soak.coordinator_stopped,
    Soak.both_killed,
    Soak.sent_twice,
    Soak.corrupted,
    Soak.suspended,
    *[Soak.wire_cut] * 2,
    Soak.wire_corrupted,
]


TWO_ROUNDS = (Soak.site_killed, Soak.both_killed, Soak.suspended, Soak.coordinator_stopped)
"""After these a round without a fault follows."""


def _resources(pid: int | None) -> dict[str, int]:
    """What a process takes; nothing of one that was killed just now."""
    own = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (own / "status").read_text().splitlines())
    if "VmRSS" not in status:
        return {}
    return {
        "kb": int(status["VmRSS"].split()[0]),
        "threads": int(status["Threads"]),
        "descriptors": len(os.listdir(own / "fd")),
    }


def _files(folder: Path) -> int:
    """Files besides those that every round has one of."""
    kept = ("sums", "vectors", "transcripts")
    return sum(path.is_file() and not set(path.parts) & set(kept) for path in folder.rglob("*"))


def told(lines: list[dict[str, Any]]) -> str:
    """What the rounds came to."""
    lives: dict[tuple[str, int], list[dict[str, int]]] = defaultdict(list)
    for line in lines:
        for name, found in line["processes"].items():
            lives[name, found["life"]].append(found)
    said = [
        f"{len(lines)} rounds, all exact; {sum(line['attempts'] == 1 for line in lines)} in the first attempt, "
        f"{sum(line['included'] == len(SITES) for line in lines)} of all five sites; in "
        f"{sum(line.get('accepted', 0) > 0 for line in lines)} operators had to accept a round by name"
    ]
    for (name, life), found in sorted(lives.items()):
        if len(found) >= LONG_LIFE:
            first, last = found[AT_LEAST], found[-1]
            said.append(
                f"{name}, process {life}, {len(found)} rounds: "
                + ", ".join(f"{what} {first[what]} to {last[what]}" for what in ("kb", "threads", "descriptors"))
            )
    most = {name: max(line["files"][name] for line in lines) for name in lines[0]["files"]}
    said.append(f"files, at first {lines[0]['files']}, at most {most}")
    return "\n".join(said)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("build/soak"))
    parser.add_argument("--for", type=float, dest="seconds", default=float("inf"), help="stop after so many seconds")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    journal, ends = given.folder / "soak.jsonl", time.monotonic() + given.seconds
    lines = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    with federation(
        given.folder / "parties", sites=SITES, length=LENGTH, rounds=given.rounds, step_seconds=STEP_SECONDS
    ) as made:
        soak = Soak(made, random.Random(f"{given.seed} {len(lines)}"))
        for line in lines[-1:]:
            soak.lives.update({name: found["life"] + 1 for name, found in line["processes"].items()})
        soak.start()
        while len(lines) < given.rounds and time.monotonic() < ends:
            lines.append(soak.round(lines[-1]["round"] if lines else 0))
            with journal.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            shown = {key: lines[-1][key] for key in ("round", "fault", "seconds", "attempts", "included", "accepted")}
            sys.stdout.write(json.dumps(shown) + "\n")
            sys.stdout.flush()
        if len(lines) == given.rounds:
            soak.end()
        made.check_logs()
    sys.stdout.write(told(lines) + "\n")


if __name__ == "__main__":
    main()
