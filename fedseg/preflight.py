"""`--check`: whether a party could take part now, a row for each thing that it needs; nothing is charged or sent.

Each row is ok, a warning or a failure, in one sentence that says what to do. A site's check connects to the coordinator
without a greeting, so that the site's own process may run meanwhile.
"""

import math
import shutil
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedseg.budget.cap import Cap, lifetime
from fedseg.budget.plan import planned_entries
from fedseg.coordinator.finding import earlier_folder, run_is_over
from fedseg.credentials import (
    WARN_DAYS,
    coordinator_tls,
    expiring,
    load_federation,
    signing_key,
    site_tls,
)
from fedseg.data.layouts.table import layout_of
from fedseg.data.loading import load_site
from fedseg.device import device_of
from fedseg.errors import ConfigError, FedSegError
from fedseg.exposure import held
from fedseg.ledger import FILE, distinct
from fedseg.site.control import LEAST_DIGITS, Control
from fedseg.status import read_status
from fedseg.study import Study
from secagg.enrolment.office import OFFICE, REVOKED, Office
from secagg.enrolment.papers import grouped
from secagg.errors import SecAggError
from secagg.rpc.pem import certificates_in, days_left
from secagg.rpc.probe import probe
from secagg.rpc.proof import MTLS, TLS, trusted
from secagg.rpc.proxy import dial, proxy_for
from secagg.rpc.tls import COORDINATOR, diagnose

OK, WARN, FAIL = "ok", "warn", "fail"
_CLOCK_WARN, _CLOCK_FAIL = 30.0, 300.0
_DISK = 1 << 30
_DIAL_SECONDS = 20.0


@dataclass(frozen=True)
class Row:
    """One thing that was looked at: its name, `OK`, `WARN` or `FAIL`, and a sentence."""

    name: str
    state: str
    said: str


Found = tuple[str, str]
"""State and sentence of a row."""


def check_site(
    study: Study,
    site: str,
    address: str,
    credentials: Path,
    data: Path | None,
    state: Path,
    out: Path,
    proxy: str | None = None,
    tls: str = MTLS,
) -> Iterator[Row]:
    """What a site needs, as its options say it.

    Args:
        study: whose.
        site: the site's id.
        address: HOST:PORT of the coordinator.
        credentials: folder with the site's own.
        data: the site's images, None where the layout needs none.
        state: folder of the data set's marks and ledger.
        out: where run folders go.
        proxy: as of `secagg.rpc.proxy.proxy_for`.
        tls: "mtls" or "tls", as the coordinator has it.
    """
    yield _row("study", lambda: _study(study))
    yield _row("approval", lambda: _approval(study, state))
    yield _row("roster and key", lambda: _roster(credentials, study, site))
    yield _row("certificate", lambda: _certificate(credentials, site) if tls == MTLS else _balancer(credentials))
    yield _row("proxy", lambda: _proxy(address, proxy))
    yield _row("coordinator", lambda: _reached(credentials, study, site, address, proxy, tls))
    yield _row("clock", lambda: _clock(credentials, study, site, address, proxy, tls))
    yield _row("data", lambda: _data(data, site, study))
    yield _row("ledger", lambda: _ledger(state))
    yield _row("budget", lambda: _budget(study, site, credentials, state))
    yield _row("disk", lambda: _disk(state, out))
    yield _row("device", lambda: _device(study))


def check_coordinator(
    study: Study, host: str, port: int, credentials: Path, out: Path, tls: str = MTLS
) -> Iterator[Row]:
    """What a coordinator needs, as its options say it; arguments as for `check_site`."""
    yield _row("study", lambda: _study(study))
    yield _row("roster and key", lambda: _roster(credentials, study, COORDINATOR))
    yield _row("certificate", lambda: _certificate(credentials, COORDINATOR))
    yield _row("sites' certificates", lambda: _members(credentials, study, tls))
    yield _row("run", lambda: _run(credentials, study, out))
    yield _row("port", lambda: _port(host, port))
    yield _row("disk", lambda: _disk(out))


def _row(name: str, look: Callable[[], Found]) -> Row:
    try:
        return Row(name, *look())
    except (FedSegError, SecAggError) as error:
        return Row(name, FAIL, str(error))
    except OSError as error:
        return Row(name, FAIL, f"{error.filename or name}: {error.strerror or error}; look at it, and check again")


def _study(study: Study) -> Found:
    return OK, f"{study.study.name}; its hash, to be compared aloud: {grouped(study.hash().hex()[:24], ' ')}"


def _approval(study: Study, state: Path) -> Found:
    if not layout_of(study).needs_folder:
        return OK, "not needed: made patients are nobody"
    own = study.hash().hex()
    if Control(state).approved(own):
        return OK, "this site's operator approved the study"
    how = f"fedseg site ... --approve {own[:LEAST_DIGITS]}"
    return WARN, f"nobody here approved this study yet; compare its hash aloud, then start once with {how}"


def _run(credentials: Path, study: Study, out: Path) -> Found:
    federation = load_federation(credentials, study)
    name = federation.training_run
    folder = earlier_folder(out, study, federation)
    if folder is None:
        return OK, f"{name} has not begun; its folder will be in {out}"
    status = read_status(folder)
    done = f"{name} has {status.completed} of {study.study.rounds} rounds in {folder}"
    if status.running:
        return FAIL, f"{done}, and a coordinator works on it now; see fedseg status {folder}"
    if run_is_over(folder):
        return WARN, f"{done}, and is over; publish the next roster with the name of a new run"
    return OK, f"{done}; the same command goes on with it"


def _roster(credentials: Path, study: Study, name: str) -> Found:
    federation = load_federation(credentials, study)
    signing_key(credentials, name)
    who = f"run {federation.training_run} with {', '.join(federation.pinned)}"
    if not federation.signature:
        return WARN, f"{who}; federation.toml is not signed: make it with fedseg enrol publish"
    return OK, f"{who}; roster {federation.number}, signed by the coordinator"


def _certificate(credentials: Path, name: str) -> Found:
    if said := expiring(credentials, name):
        return (FAIL if "has expired" in said else WARN), said
    days = days_left(certificates_in(credentials / f"{name}.pem", "certificate")[0])
    return OK, f"{days:.0f} days left"


def _balancer(credentials: Path) -> Found:
    """In mode tls a site shows no certificate, and trusts whoever ends TLS."""
    path = trusted(credentials, TLS)
    days = days_left(certificates_in(path, "authority")[0])
    told = f"none is shown in mode tls; {path}, which this site trusts, "
    if days <= 0:
        return FAIL, f"{told}has expired: put the present one there"
    return (OK if days >= WARN_DAYS else WARN), f"{told}has {days:.0f} days left"


def _proxy(address: str, option: str | None) -> Found:
    proxy = proxy_for(_split(address)[0], option)
    if proxy is None:
        return OK, "none: no option and no https_proxy names one for this address"
    try:
        dial(proxy.host, proxy.port, None, _DIAL_SECONDS).close()
    except OSError as error:
        return FAIL, f"{proxy} does not answer ({error.strerror or error}); correct what names it, or set no_proxy"
    return OK, f"{proxy} answers"


def _reached(credentials: Path, study: Study, site: str, address: str, option: str | None, mode: str) -> Found:
    tls = site_tls(credentials, site, load_federation(credentials, study), mode)
    host, port = _split(address)
    proxy = proxy_for(host, option)
    way = f"{address} through {proxy}" if proxy is not None else address
    if said := diagnose(host, port, tls, proxy):
        other = "" if mode == MTLS else f"; where the coordinator is in mode {MTLS}, start this site in {MTLS} too"
        return FAIL, f"no connection to {way}: {said}{other}"
    found = probe(host, port, tls, proxy)
    if found.mode not in ("", mode):
        return FAIL, f"answers at {way} in mode {found.mode}, and this site is in {mode}: start both in the same one"
    if found.refused:
        return FAIL, f"answers at {way}, and refuses this site: {found.refused}"
    proof = "takes this site's certificate" if mode == MTLS else "asks it to prove itself with its signing key"
    return OK, f"answers at {way} over TLS, and {proof}"


def _clock(credentials: Path, study: Study, site: str, address: str, option: str | None, mode: str) -> Found:
    tls = site_tls(credentials, site, load_federation(credentials, study), mode)
    host, port = _split(address)
    ahead = probe(host, port, tls, proxy_for(host, option)).ahead
    if ahead is None:
        return WARN, "could not be compared with the coordinator's, which does not answer"
    way = "behind" if ahead > 0 else "ahead of"
    said = f"{abs(ahead):.0f} s {way} the coordinator's"
    if abs(ahead) < _CLOCK_WARN:
        return OK, said
    return (FAIL if abs(ahead) > _CLOCK_FAIL else WARN), f"{said}; set this computer's clock by NTP"


def _data(data: Path | None, site: str, study: Study) -> Found:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = load_site(data, site, study)
    train, test = (len({case.patient for case in cases}) for cases in (found.train, found.test))
    told = f"{train} patients to train with, {test} held out"
    odd = [str(each.message) for each in said if str(each.message).startswith("[")]
    if odd:
        return WARN, f"{told}; {len(odd)} remarks, the first: {odd[0]}"
    return (OK if train else WARN), told


def _ledger(state: Path) -> Found:
    if state.exists() and not state.is_dir():
        return FAIL, f"{state}: is a file; give --state a folder"
    path = state / FILE
    if not path.is_file():
        return OK, f"{state}: nothing was charged yet"
    return OK, f"{state}: {len(held(path))} entries, chain and signatures hold"


def _budget(study: Study, site: str, credentials: Path, state: Path) -> Found:
    path = state / FILE
    entries = distinct([line.entry for line in held(path)]) if path.is_file() else []
    run = load_federation(credentials, study).training_run
    caps = [cap for cap in [lifetime(state)] if cap is not None]
    privacy = study.privacy
    if study.trust.claims_epsilon and privacy.epsilon is not None and privacy.delta is not None:
        caps.append(Cap("this study's budget", "", privacy.epsilon, privacy.delta, study.study.seed is not None))
    if not caps:
        return WARN, "this study promises no epsilon, and no budget.toml in the state folder caps what is spent"
    new = [entry for entry in planned_entries(study, site, run) if not any(old.same_use(entry) for old in entries)]
    told, state_of = [], OK
    for cap in caps:
        spent, whole = cap.spent(entries), cap.spent([*entries, *new])
        told.append(f"{cap.budget} {cap.epsilon:g}: {_epsilon(spent)} spent, {_epsilon(whole)} after all of this study")
        if whole > cap.epsilon * (1 + 1e-9):
            state_of = WARN
    remedy = "; the site will leave before the end" if state_of == WARN else ""
    return state_of, "; ".join(told) + remedy


def _disk(*folders: Path) -> Found:
    free = {}
    for folder in folders:
        at = folder.absolute()
        while not at.exists():
            at = at.parent
        free[folder] = shutil.disk_usage(at).free
    told = ", ".join(f"{size / 1e9:.1f} GB free for {folder}" for folder, size in free.items())
    return (OK, told) if min(free.values()) >= _DISK else (WARN, f"{told}; make room: a full disk stops a round")


def _device(study: Study) -> Found:
    try:
        return OK, f"{device_of(study)}, {study.run.threads} threads"
    except ConfigError as error:
        return FAIL, str(error)


def _members(credentials: Path, study: Study, mode: str) -> Found:
    coordinator_tls(credentials)
    if not (credentials / OFFICE).is_dir():
        return OK, f"not known here: this folder has no {OFFICE}"
    register = Office(credentials).register
    if gone := [site for site in study.site_ids if site in register.members and site not in register.approved]:
        return FAIL, f"{', '.join(gone)} is in the roster and was revoked ({REVOKED}); publish the next roster"
    if mode == TLS:
        return OK, "none is shown in mode tls: the signing keys of the roster say who is who"
    certificates = {site: member.expires for site, member in register.approved.items() if site in study.site_ids}
    soon = [f"{site} on {expires[:10]}" for site, expires in certificates.items() if _soon(expires)]
    if soon:
        return WARN, f"expiring: {', '.join(soon)}; ask for fedseg enrol renew"
    return OK, f"{len(certificates)} sites were approved here, none expires within {WARN_DAYS:.0f} days"


def _soon(expires: str) -> bool:
    import datetime as dt

    with suppress(ValueError):
        return dt.datetime.fromisoformat(expires) < dt.datetime.now(dt.UTC) + dt.timedelta(days=WARN_DAYS)
    return True


def _port(host: str, port: int) -> Found:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            return FAIL, f"{host}:{port} cannot be listened on ({error.strerror}); is a coordinator running already?"
    where = f"{host}:{port} is free" if port else "a free one is taken: sites need a fixed one, give --port"
    local = "; only this computer reaches it: give --host 0.0.0.0 for others" if host in ("127.0.0.1", "::1") else ""
    return (WARN if local or not port else OK), where + local


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        raise FedSegError(f"address {address!r}: give HOST:PORT")
    return host.strip("[]"), int(port)


def _epsilon(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "no epsilon"
