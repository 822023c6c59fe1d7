"""What a status says, in the words that the command's table and the page share."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from fedseg.privacy.delta import delta_text
from fedseg.privacy.trust import SEEDED
from fedseg.status import COORDINATOR, GONE, HERE, LEFT, REFUSED, Peer, Status
from secagg.steps import STEPS

SOON = 30
"""Days before the end of a certificate from which on it is a warning."""

SHORT = dict(zip(STEPS[:-1], ("keys", "shares", "report", "masked update", "attestation", "unmasking"), strict=True))
"""What a site sends in each step."""

LITTLE = 2 * 10**9
"""Free bytes below which it is a warning."""


@dataclass(frozen=True)
class Row:
    """One peer, as it is shown: `state` is a sentence, `tone` one of "", "good", "bad" and "quiet"."""

    name: str
    state: str
    tone: str
    doing: str
    awaited: bool
    epsilon: str
    dice: tuple[str, ...]
    patients: str
    certificate: str
    expiring: bool


def rows(status: Status) -> list[Row]:
    """Every peer."""
    return [_row(peer, status) for peer in status.peers]


def _row(peer: Peer, status: Status) -> Row:
    left = days_left(peer.certificate, status.asked)
    tone = {HERE: "good", GONE: "bad", REFUSED: "bad", LEFT: "quiet"}.get(peer.state, "quiet")
    state = f"{peer.state} for {ago(peer.since, status.asked)}" if peer.since else peer.state
    if peer.name == status.party:
        state, tone = "this party", ""
    elif peer.state in (HERE, GONE) and not status.running:
        state, tone = "not known" if not status.over else "over", "quiet"
    return Row(
        name=peer.name,
        state=f"{state}: {peer.reason}" if peer.reason else state,
        tone=tone,
        doing=_doing(peer, status),
        awaited=peer.awaited and status.running,
        epsilon="" if peer.epsilon is None else epsilon_text(peer.epsilon),
        dice=tuple(_number(peer.dice.get(name)) for name in status.structures) if peer.dice else (),
        patients=str(peer.patients) if peer.dice else "",
        certificate="" if left is None else f"{left} days" if left != 1 else "1 day",
        expiring=left is not None and left < SOON,
    )


def _doing(peer: Peer, status: Status) -> str:
    if peer.silent:
        return f"silent since round {peer.silent}"
    if peer.awaited and status.running:
        return "awaited"
    return f"{SHORT[peer.step]} sent" if peer.step in SHORT else peer.step


def headline(status: Status) -> str:
    """What the run is doing, in one sentence."""
    if status.over:
        return f"{status.over}: {status.completed} of {status.rounds} rounds have a sum"
    if not status.study:
        return "starting"
    if not status.running:
        heard = f"; it was last heard of {ago(status.heard, status.asked)} ago" if status.heard else ""
        resume = "; the same command goes on with it" if status.party else ""
        return f"down: no process works on this run{heard}{resume}"
    where = f"round {status.round} of {status.rounds}" if status.round else "before the first round"
    if status.step:
        where += f", step {status.step}"
    if not status.awaited:
        return where
    waits = f"waits for {', '.join(status.awaited)} for {ago(status.since, status.asked)}"
    until = ago(status.asked, status.deadline)
    return f"{where}: {waits}" + (f", at most {until} more" if until else "")


def privacy(status: Status) -> str:
    """What belongs to every epsilon here: unit, delta, budget and who is trusted; or that none is claimed."""
    if not status.trust:
        return f"no differential privacy is claimed (mechanism '{status.mechanism}')" if status.mechanism else ""
    budget = f", of a budget of {status.budget:g}" if status.budget is not None else ""
    said = f"epsilon per {status.unit} at delta {delta_text(status.delta)}{budget}; {status.trust}"
    return f"{said}; {SEEDED}" if status.seeded else said


def warnings(status: Status) -> Iterator[str]:
    """What an operator should do something about."""
    left = days_left(status.certificate, status.asked)
    if left is not None and left < SOON:
        yield f"the certificate of {status.party} ends in {left} days: renew it"
    for row in rows(status):
        if row.expiring:
            yield f"the certificate of {row.name} ends in {row.certificate}: renew it"
    if status.free_bytes is not None and status.free_bytes < LITTLE:
        yield f"little free disk: {size(status.free_bytes)}"
    for peer in status.peers:
        if peer.state == REFUSED:
            yield f"{peer.name} was refused: {peer.reason}"
    if status.burned and not status.spare and not status.over:
        yield f"{status.burned} rounds burned and no spare one is left: the next ends the study short"


def role(status: Status) -> str:
    """Whose run it is."""
    return {"": "simulation", COORDINATOR: "coordinator"}.get(status.party, f"site {status.party}")


def epsilon_text(epsilon: float | None) -> str:
    """Epsilon with two decimals, or two figures where that would say 0.0."""
    if epsilon is None:
        return "n/a"
    return f"{epsilon:.2f}" if epsilon >= 0.1 else f"{epsilon:.2g}"


def ago(since: str, until: str) -> str:
    """From one time to another, such as "12 s", "3 min" or "2 h 5 min"; "" where one is not known."""
    first, last = _time(since), _time(until)
    if first is None or last is None:
        return ""
    seconds = max(0, round((last - first).total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if minutes < 2:
        return f"{seconds} s"
    if hours < 2:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if days < 2 else f"{days} days"


def clock(at: str) -> str:
    """A time to the second, "2026-11-30 03:12:01 UTC"."""
    found = _time(at)
    return "" if found is None else f"{found:%Y-%m-%d %H:%M:%S} UTC"


def days_left(until: str, asked: str) -> int | None:
    """Whole days from the moment of asking until a certificate ends; None where that is not known."""
    first, last = _time(asked), _time(until)
    return None if first is None or last is None else (last - first).days


def size(count: int) -> str:
    """Bytes such as "1.2 GB"; decimal units, as disks are sold."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} GB"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


def _time(at: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(at)
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
