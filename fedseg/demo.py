"""The demonstration: a coordinator and its sites as real processes on one machine, one of them killed mid-round.

It is the operator of all parties at once: it makes their certificates, starts and ends them, follows the coordinator's
events, and, because all sites are its own, can say whether a sum was exact. All children end with it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import BinaryIO, TypeAlias

import numpy as np

from fedseg.credentials import make_credentials
from fedseg.errors import RoundFailedError
from fedseg.events import AnyEvent, Audience, Audited, Listener, Listening, Note, RoundEnded, StepAccepted, event_of
from fedseg.runfolder import PARTIAL
from fedseg.study import Study
from secagg.packing import dtype_for, modulo
from secagg.steps import SHARE_REPORT
from secagg.writing import PRIVATE_FOLDER

STUDY = Path(__file__).with_suffix(".toml")
POLL_SECONDS = 0.05
AUDIT_SECONDS = 60.0
END_SECONDS = 180.0
"""Limits for a busy machine: nothing waits for them where all is well."""

KILLED_IN_ROUND = 3
INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Kills: TypeAlias = Mapping[tuple[int, str], str]
"""(Round number, site) to the last protocol step that the site lives to see accepted."""


class Demo:
    """One demonstration in a folder of its own under `folder`; earlier ones stay and are not in the way.

    Args:
        folder: where its folder goes.
        study: any study that needs no images.
        listener: takes every event.
        kills: which sites are killed and when; by default the second one, in round 3, after its share report, hence
            after ShareKeys and before its masked input.
    """

    def __init__(self, folder: Path, study: Study, listener: Listener, kills: Kills | None = None) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self.folder = (folder / f"{stamp}-{os.getpid()}").resolve()
        self.study, self._audience = study, Audience(listener)
        self._kills = kills or {(KILLED_IN_ROUND, study.site_ids[1]): SHARE_REPORT}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._address, self._starting, self._interrupted = "", False, False
        self._exact: dict[int, bool | None] = {}

    def run(self) -> Path:
        """Run it to its end.

        Returns:
            The coordinator's complete run folder.

        Raises:
            RoundFailedError: a process ended that should not have; says where its log is.
        """
        self.folder.mkdir(PRIVATE_FOLDER, parents=True)
        study_file = self.folder / "study.toml"
        study_file.write_text(self.study.toml(), encoding="utf-8")
        make_credentials(self.folder / "credentials", self.study, f"demo-{self.folder.name}")
        before = {number: signal.signal(number, self._interrupt) for number in INTERRUPTIONS}
        try:
            waits = ["--port", "0", "--patience", "600", "--rejoin-seconds", "300"]
            self._start("coordinator", "coordinator", str(study_file), *waits)
            for event in self._events():
                self._react(event)
            for site in self.study.site_ids:
                self._end(site)
        finally:
            self._stop()
            for number, handler in before.items():
                signal.signal(number, handler)
        return self._finished()

    # --- Processes ---------------------------------------------------------------------------------------------------

    def _start(self, name: str, *command: str) -> None:
        # An interruption would come out of Popen after the child's birth, and nobody would know of the child.
        self._starting = True
        arguments = [*command, "--credentials", str(self.folder / "credentials"), "--out", str(self._runs(name))]
        with (self.folder / f"{name}.log").open("ab") as log:
            self._children[name] = subprocess.Popen(  # noqa: S603  our own executable
                [sys.executable, "-m", "fedseg.cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C reaches this process only, which then ends its children in order
            )
        self._starting = False
        if self._interrupted:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True
        if not self._starting:
            raise KeyboardInterrupt

    def _start_site(self, site: str) -> None:
        state, audit = self.folder / f"{site}-state", self.folder / "audit"
        own = ["--coordinator", self._address, "--state", str(state), "--audit", str(audit)]
        self._start(site, "site", str(self.folder / "study.toml"), site, *own)

    def _runs(self, name: str) -> Path:
        return self.folder / "runs" / name

    def _end(self, name: str) -> None:
        """Wait for a site that was told that the study is complete."""
        try:
            self._children[name].wait(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            self._tell(Note(text=f"{name} did not end by itself; its log: {self._log(name)}"))

    def _stop(self) -> None:
        for child in self._children.values():
            child.terminate()
        for child in self._children.values():
            try:
                child.wait(timeout=5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _check_children(self) -> None:
        for name, child in self._children.items():
            if child.poll() not in (None, 0):
                said = self._log(name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
                last = said[-1] if said else "nothing was said"
                raise RoundFailedError(f"the process of {name} ended: {last} (log: {self._log(name)})")

    # --- What happens ------------------------------------------------------------------------------------------------

    def _events(self) -> Iterator[AnyEvent]:
        """The coordinator's events as they are written, until its process has ended well."""
        coordinator = self._children["coordinator"]
        while not (found := list(self._runs("coordinator").glob(f"*{PARTIAL}/events.jsonl"))):
            self._check_children()
            time.sleep(POLL_SECONDS)
        with found[0].open("rb") as file:
            while True:
                ended = coordinator.poll() is not None
                yield from _whole_lines(file)
                if ended:
                    self._check_children()
                    return
                self._check_children()
                time.sleep(POLL_SECONDS)

    def _react(self, event: AnyEvent) -> None:
        match event:
            case Listening():
                self._address = event.where
                for site in self.study.site_ids:
                    self._start_site(site)
            case StepAccepted() if self._kills.get((event.round, event.site)) == event.step:
                self._kill(event.round, event.site, event.step)
            case RoundEnded():
                exact = self._exact[event.round] = self._audited(event)
                event = event.model_copy(update={"exact": exact})
        self._tell(event)

    def _tell(self, event: AnyEvent) -> None:
        for note in self._audience.tell(event):
            self._tell(note)

    def _kill(self, number: int, site: str, step: str) -> None:
        """Kill a site, and start it again as an operator would."""
        victim = self._children[site]
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        text = f"round {number}: {site} was killed (SIGKILL) after {step}, with its keys already shared"
        self._tell(Note(text=text))
        self._start_site(site)

    def _audited(self, event: RoundEnded) -> bool | None:
        """Whether the total that a site received is the sum of what the included sites quantised, bit for bit."""
        number, included = event.round, event.included
        audit = self.folder / "audit"
        updates = [audit / f"{number:04d}-{site}-update.npy" for site in included]
        alive = [site for site in included if (number, site) not in self._kills]
        totals = [audit / f"{number:04d}-{site}-total.npy" for site in alive]
        if not _wait(lambda: all(path.is_file() for path in (*updates, *totals)), AUDIT_SECONDS):
            return None
        bits = self.study.policy(1).bits
        expected = sum((np.load(path, allow_pickle=False) for path in updates), start=np.zeros(1, dtype_for(bits)))
        modulo(expected, bits)
        exact = all(np.array_equal(expected, np.load(path, allow_pickle=False)) for path in totals)
        for path in (*updates, *totals):
            path.unlink()
        return exact

    def _finished(self) -> Path:
        """The coordinator's run folder, with what only the owner of all sites could see added to its events."""
        run = next(path for path in self._runs("coordinator").iterdir() if not path.name.endswith(PARTIAL))
        with (run / "events.jsonl").open("a", encoding="utf-8") as events:
            for number, exact in self._exact.items():
                events.write(Audited(round=number, exact=exact).model_dump_json() + "\n")
        return run


def _whole_lines(file: BinaryIO) -> Iterator[AnyEvent]:
    while True:
        position, line = file.tell(), file.readline()
        if not line.endswith(b"\n"):
            file.seek(position)
            return
        if event := event_of(json.loads(line)):
            yield event


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
