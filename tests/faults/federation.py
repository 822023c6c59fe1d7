"""Four sites and a coordinator as processes, one of the sites behind a proxy; what they must have added up."""

import datetime as dt
import json
import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from numpy.typing import NDArray

from secagg import home
from secagg.field import Field
from secagg.layout import Layout
from secagg.rpc.demo_authority import Authority
from secagg.rpc.tls import COORDINATOR
from secagg.writing import write_whole
from tests.faults.parties import Party, Strike
from tests.support.tcp_proxy import TcpProxy

SITES = ("site-a", "site-b", "site-c", "site-d")
STRUCK = SITES[-1]
LENGTH, ROUNDS = 1000, 3
CLIP = 32768.0
"""With 16 bits a value, one step of it is 1: whole numbers are added exactly, and nothing is rounded."""

CANCELLED_EARLY = re.compile(
    r"Traceback \(most recent call last\):\n"
    r'  File "[^"]*aio/server\.pyx\.pxi", line \d+, in grpc\._cython\.cygrpc\._schedule_rpc_coro\n'
    r"asyncio\.exceptions\.CancelledError\n"
)
"""What gRPC prints, past every log, where a client cancels a call before the task of its handler has made a step."""


class Federation:
    """What all parties have, and the processes that run.

    Args:
        folder: an empty one, or that of an earlier federation with the same arguments, which goes on.
        state: where the coordinator keeps everything; in `folder` where None.
        sites: their ids; the last one is behind the proxy.
        length: of the vectors.
        rounds: how many the coordinator is asked for.
        step_seconds: of the coordinator.

    Attributes:
        rejoin_seconds: how long the coordinator waits for a site that is missing, once.
        patience: how long it waits for enough of them.
        all_behind: whether all sites are behind the proxy, in place of the last one.
    """

    def __init__(
        self,
        folder: Path,
        state: Path | None = None,
        *,
        sites: Sequence[str] = SITES,
        length: int = LENGTH,
        rounds: int = ROUNDS,
        step_seconds: float = 8.0,
    ) -> None:
        self.folder, self.sites, self.length, self.rounds = folder, sites, length, rounds
        self.step_seconds, self.rejoin_seconds, self.patience = step_seconds, 15.0, 60.0
        self.all_behind = False
        self.state = (folder if state is None else state) / home.SERVER
        self.authority = Authority()
        if not (folder / sites[0]).is_dir():
            home.trial(folder, sites, Layout({"update": Field.floats(length, clip_range=CLIP)}), max_corrupt=1)
            shutil.move(folder / home.SERVER, self.state)
        self.authority.write(self.state)
        self.authority.issue(self.state, COORDINATOR, ["127.0.0.1"])
        for site in sites:
            self.certify(site)
            (folder / site / "vectors").mkdir(exist_ok=True)
        for number in range(1, ROUNDS + 1):
            self.write_vectors(number)
        self.port = _free_port()
        self.proxy = TcpProxy("127.0.0.1", self.port)
        self.parties: dict[str, Party] = {}
        self.ended: list[Party] = []

    def write_vectors(self, number: int) -> None:
        """What each site adds to a round."""
        for site in self.sites:
            path = self.folder / site / "vectors" / f"{number:04d}.npy"
            if not path.exists():
                np.save(path, vector(site, number, self.length))

    def certify(self, site: str, **given: object) -> None:
        """Give a site a new certificate; see `Authority.issue`."""
        self.authority.write(self.folder / site)
        self.authority.issue(self.folder / site, site, **given)

    def revoke(self, site: str) -> None:
        """The authority takes a site's certificate back, in the list that lies beside the coordinator's own."""
        certificate = x509.load_pem_x509_certificate((self.folder / site / f"{site}.pem").read_bytes())
        now = dt.datetime.now(dt.UTC)
        entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number).revocation_date(now).build()
        listed = x509.CertificateRevocationListBuilder().issuer_name(certificate.issuer).last_update(now)
        listed = listed.next_update(now + dt.timedelta(days=1)).add_revoked_certificate(entry)
        signed = listed.sign(self.authority._key, hashes.SHA256())
        write_whole(self.state / "revoked.pem", signed.public_bytes(serialization.Encoding.PEM))

    def serve(self, *strikes: Strike) -> Party:
        """Start the coordinator, or start it again: always the same command."""
        seconds = str(self.step_seconds)
        given = ["--port", str(self.port), "--rounds", str(self.rounds), "--out", str(self.state / "sums")]
        given += ["--patience", str(self.patience)]
        given += ["--step-seconds", seconds, "--input-seconds", seconds, "--rejoin-seconds", str(self.rejoin_seconds)]
        return self._start(COORDINATOR, ["serve", str(self.state), *given], *strikes)

    def join(self, site: str, *strikes: Strike) -> Party:
        """Start a site, or start it again: always the same command."""
        behind = self.all_behind or site == self.sites[-1]
        address = self.proxy.address if behind else f"127.0.0.1:{self.port}"
        own = self.folder / site
        given = ["--coordinator", address, "--vector", str(own / "vectors"), "--out", str(own / "sums")]
        return self._start(site, ["join", str(own), *given], *strikes)

    def _start(self, name: str, arguments: list[str], *strikes: Strike) -> Party:
        if name in self.parties:
            self.ended.append(self.parties[name])
        events = self.folder / f"{name}.events"
        arguments = [*arguments, "--events", str(events)]
        self.parties[name] = party = Party(name, arguments, self.folder / f"{name}.log", events, *strikes)
        return party

    @property
    def coordinator(self) -> Party:
        """The coordinator's process, the latest one."""
        return self.parties[COORDINATOR]

    def finished(self, number: int) -> bool:
        """Whether the coordinator has the sum of a round."""
        return (self.state / "sums" / f"{number:04d}.json").is_file()

    def included(self, number: int) -> list[str]:
        """Whom the coordinator's sum of a round is of."""
        return list(json.loads((self.state / "sums" / f"{number:04d}.json").read_text())["included"])

    def attempts(self, number: int) -> int:
        """How many attempts a round took."""
        lines = (self.folder / f"{COORDINATOR}.events").read_text().splitlines()
        steps = [event for event in map(json.loads, lines) if event["event"] == "step"]
        return len({event["attempt"] for event in steps if event["round"] == number})

    def recovered(self) -> bool:
        """Whether the struck site, or a later process of it, is ready for another round."""
        return bool(self.parties[STRUCK].events("connected"))

    def check_sums(self) -> None:
        """Every sum that anybody holds is exactly the plain one over exactly who is in it, and all agree.

        Raises:
            AssertionError: it is not.
        """
        for number in range(1, self.rounds + 1):
            if self.finished(number):
                self.check_sum(number)

    def check_sum(self, number: int) -> None:
        """The same of one round that is over."""
        included = self.included(number)
        assert len(included) == len(set(included))
        plain = sum((vector(site, number, self.length) for site in included), np.zeros(self.length))
        for own in (self.state, *(self.folder / site for site in self.sites)):
            path = own / "sums" / f"{number:04d}.npy"
            if path.is_file():
                assert np.array_equal(np.load(path), plain), f"{path} is not the sum of {included}"

    def check_logs(self) -> None:
        """Nobody has shown a traceback, but for gRPC's own of a call that ended before its handler began.

        Raises:
            AssertionError: somebody has.
        """
        for name in self.parties:
            said = CANCELLED_EARLY.sub("", (self.folder / f"{name}.log").read_text(errors="replace"))
            assert "Traceback" not in said, f"{name}:\n{said}"

    def end(self) -> None:
        """Kill whoever is left."""
        for party in (*self.parties.values(), *self.ended):
            party.kill()


@contextmanager
def federation(folder: Path, state: Path | None = None, **given: Any) -> Iterator[Federation]:
    """A federation, of which no process outlives the block."""
    made = Federation(folder, state, **given)
    with made.proxy:
        try:
            yield made
        finally:
            made.end()


def vector(site: str, number: int, length: int = LENGTH) -> NDArray[np.float64]:
    """What a site adds to a round: whole numbers."""
    seed = [number, *site.encode()]
    return np.random.default_rng(seed).integers(-20000, 20000, length).astype(np.float64)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
