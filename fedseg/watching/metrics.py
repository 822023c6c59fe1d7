"""Metrics for Prometheus, read from a status when they are asked for.

Where an epsilon is claimed nothing here changes at the moment at which one site's masked input comes: how long a site
trains tells how many patients were drawn, and metrics go to machines of others. For the same reason a site shows
neither its processor time nor its memory.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedseg.status import COORDINATOR, HERE, STATES, Status
from secagg.steps import MASKED_INPUT_COLLECTION

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(status: Status) -> bytes:
    """The text that Prometheus reads."""
    registry = CollectorRegistry()
    registry.register(_Read(status))
    if status.party == COORDINATOR:
        ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Read(Collector):
    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        """Every family, in order."""
        yield from _of_run(self._status)
        yield from _of_peers(self._status)


def _of_run(status: Status) -> Iterator[Metric]:
    run = _gauge("fedseg_run", "1, with what the run is of.", ("study", "party", "study_hash"))
    run.add_metric([status.study, status.party, status.study_hash], 1)
    yield run
    yield _one("fedseg_over", "1 once the run is over.", bool(status.over))
    yield _one("fedseg_rounds_planned", "Rounds that the study has.", status.rounds)
    yield _one("fedseg_round", "Number of the round that began last.", status.round)
    yield _count("fedseg_rounds_completed", "Rounds with a sum.", status.completed)
    yield _count("fedseg_rounds_burned", "Rounds that will have no sum.", status.burned)
    yield _one("fedseg_spare_rounds_left", "Rounds that may still burn.", status.spare)
    yield _one("fedseg_last_sum_timestamp_seconds", "When the last sum was there.", _seconds(status.last_completed))
    bytes_ = CounterMetricFamily("fedseg_protocol_bytes", "Bytes of the protocol in completed rounds.", labels=["way"])
    bytes_.add_metric(["up"], status.bytes_up)
    bytes_.add_metric(["down"], status.bytes_down)
    yield bytes_
    took = CounterMetricFamily("fedseg_step_seconds", "Seconds by step over completed rounds.", labels=["step"])
    for step, seconds in status.took.items():
        if not (status.trust and step in (MASKED_INPUT_COLLECTION, "train")):
            took.add_metric([step], seconds)
    yield took
    if status.free_bytes is not None:
        yield _one("fedseg_free_disk_bytes", "Free on the disk of the run folder.", status.free_bytes)
    if not status.training_shows:
        yield _one("fedseg_sites_awaited", "Parties without which nothing goes on.", len(status.awaited))


def _of_peers(status: Status) -> Iterator[Metric]:
    states = Counter(peer.state for peer in status.peers)
    found = _gauge("fedseg_peers", "Peers by state.", ("state",))
    for state in STATES:
        found.add_metric([state], states[state])
    yield found
    here = _gauge("fedseg_peer_connected", "1 for a peer that is there.", ("peer",))
    spent = _gauge("fedseg_epsilon_spent", "By the site's own word.", ("peer", "unit", "delta"))
    ends = _gauge("fedseg_certificate_ends_timestamp_seconds", "When a certificate ends.", ("peer",))
    for peer in status.peers:
        here.add_metric([peer.name], peer.state == HERE)
        if peer.epsilon is not None:
            spent.add_metric([peer.name, status.unit, repr(status.delta)], peer.epsilon)
        if peer.certificate:
            ends.add_metric([peer.name], _seconds(peer.certificate))
    if status.certificate:
        ends.add_metric([status.party], _seconds(status.certificate))
    yield from (here, spent, ends)
    if status.budget is not None:
        yield _one("fedseg_epsilon_budget", "That no site's patients pass.", status.budget)


def _gauge(name: str, what: str, labels: Iterable[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, what, labels=list(labels))


def _one(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, what, value=float(value))


def _count(name: str, what: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, what, value=float(value))


def _seconds(at: str) -> float:
    try:
        return datetime.fromisoformat(at).timestamp()
    except ValueError:
        return 0.0
