"""R-06 to R-08: figures and pages say what study and log give, and folders of several parties agree."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from fedseg.errors import ConfigError
from fedseg.evidence import HELD, NOT_APPLICABLE, NOT_CHECKED, VIOLATED, Finding
from fedseg.models import load_model
from fedseg.records import Metrics
from fedseg.report import PRIVATE, epsilons_in, pages
from fedseg.summary import privacy_claim, study_event, versions
from fedseg.update import flatten
from fedseg.verifying.material import Material, Run

_OF_THE_RUN = ("t", "at", "party", "trust", "spare_rounds")
"""Fields of the log's first line that are no figures: when, by whom, and what 0.5 did not write."""


def r06_figures(given: Material) -> Iterator[Finding]:
    """R-06: metrics.json and the first line of the log say what the study plans and what the rounds came to."""
    for run in given.runs:
        first = study_event(run.study, run.first.parameters, secure=run.first.secure)
        planned = first.model_dump(exclude={"study_hash", *_OF_THE_RUN})
        wrong = _differing(planned, run.first.model_dump(), "events.jsonl")
        if run.metrics is not None:
            wrong += _differing(_expected(run, run.metrics), run.metrics.model_dump(), "metrics.json")
            wrong += _promise(run, run.metrics)
        if wrong:
            yield Finding("R-06", VIOLATED, str(run), "; ".join(wrong))
        elif run.metrics is None:
            yield Finding("R-06", HELD, str(run), "the log begins with what the study plans; the run broke off", 1)
        else:
            yield Finding("R-06", HELD, str(run), f"figures are those of the study and of {len(run.ended)} rounds", 2)


def _expected(run: Run, metrics: Metrics) -> dict[str, Any]:
    study, done = run.study, len(run.ended)
    drops = [{"round": end.round, "site": site} for end in run.ended.values() for site in end.dropped]
    unfinished = done < study.study.rounds
    return {
        "study": study.study.name,
        "rounds": study.study.rounds,
        "seed": study.study.seed,
        "seeded_no_privacy_claim": study.study.seed is not None,
        "mechanism": study.privacy.mechanism,
        "parameters": run.first.parameters,
        # Why it is unfinished is anybody's words; that it is, is not.
        "unfinished": (metrics.unfinished or "it is") if unfinished else "",
        "protocol": {"rounds_completed": done, "dropouts": drops},
    }


def _differing(expected: Any, found: Any, where: str) -> list[str]:
    """Fields of `found` that are not as expected, as clauses; others are not looked at."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return [told for name in expected for told in _differing(expected[name], found.get(name), f"{where}, {name}")]
    same = sorted(expected, key=repr) == sorted(found, key=repr) if where.endswith("dropouts") else expected == found
    return [] if same else [f"{where}: is {found!r} and should be {expected!r}"]


def _promise(run: Run, metrics: Metrics) -> list[str]:
    """What metrics.json says of privacy against what the study plans; epsilon itself is recomputed by T-17."""
    stated = metrics.privacy
    per_site = {site: spent for site, spent in stated.per_site.items() if spent is not None} if stated else {}
    in_sums = Counter(len(end.included) for end in run.ended.values())
    span = min(run.ended, default=0), max(run.ended, default=0)
    planned = privacy_claim(run.study, per_site, in_sums, metrics.protocol.burned, span)
    if planned is None or stated is None:
        return [] if planned is stated else ["metrics.json, privacy: is there although none is claimed, or missing"]
    return _differing(planned.model_dump(), stated.model_dump(), "metrics.json, privacy")


def r07_pages(given: Material) -> Iterator[Finding]:
    """R-07: each report is what the folder gives when it is written again."""
    for run in given.runs:
        if run.metrics is None:
            yield Finding("R-07", NOT_APPLICABLE, str(run), "the run broke off and has no report")
            continue
        there = [path for name in ("report.html", PRIVATE) if (path := run.path / name).is_file()]
        if not there:
            yield Finding("R-07", NOT_CHECKED, str(run), "there is no report; write one with `fedseg report`")
            continue
        try:
            written = pages(run.path)
        except ConfigError as error:
            yield Finding("R-07", VIOLATED, str(run), str(error))
            continue
        for path in there:
            yield _page(run, path.name, path.read_text(encoding="utf-8", errors="replace"), written.get(path, ""))


def _page(run: Run, name: str, found: str, written: str) -> Finding:
    if found == written:
        return Finding("R-07", HELD, str(run), f"{name} is what the folder gives, letter for letter", 1)
    stated, right = epsilons_in(found), epsilons_in(written)
    if stated != right:
        other = sorted(set(stated) ^ set(right))
        said = f"{name} states other epsilons than the folder gives ({', '.join(other) or 'another order'})"
        return Finding("R-07", VIOLATED, str(run), said)
    if run.metrics is not None and run.metrics.versions not in ({}, versions()):
        said = f"{name} was written by other versions; its epsilons are right, and the rest was not compared"
        return Finding("R-07", NOT_CHECKED, str(run), said)
    return Finding("R-07", VIOLATED, str(run), f"{name} is not what the folder gives; write it again and compare")


def r08_parties(given: Material) -> Iterator[Finding]:
    """R-08: what several parties hold of one run is the same: study, rounds, heads, sites, model, epsilon."""
    if len(given.runs) < 2:
        yield Finding("R-08", NOT_APPLICABLE, "parties", "one run folder was given: there is none to compare it with")
    for one, other in pairwise(given.runs):
        both = f"{one} and {other}"
        if wrong := list(_apart(one, other)):
            yield Finding("R-08", VIOLATED, both, "; ".join(wrong))
        else:
            common = len(one.ended.keys() & other.ended.keys())
            told = f"one study, and {common} rounds with one head, one set of sites and one model"
            yield Finding("R-08", HELD, both, told, common)


def _apart(one: Run, other: Run) -> Iterator[str]:
    if one.study.hash() != other.study.hash():
        yield "the studies differ"
        return
    for number in sorted(one.ended.keys() & other.ended.keys()):
        ends = (one.ended[number], other.ended[number])
        for name in ("head", "included", "dropped"):
            first, second = (getattr(end, name) for end in ends)
            if first != second:
                yield f"round {number}: {name} is {first} in one and {second} in the other"
    if one.ended.keys() == other.ended.keys() and one.model.is_file() and other.model.is_file():
        try:
            first, second = (flatten(load_model(run.model, run.study)).tobytes() for run in (one, other))
        except ConfigError as error:
            yield str(error)
            return
        if first != second:
            yield "the models differ"
    elif one.metrics is not None and other.metrics is not None and one.ended.keys() != other.ended.keys():
        yield "one has rounds that the other has not"
