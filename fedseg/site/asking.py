"""What a site's operator reads before it takes part: what is trained, on which data, what is asked, what was spent."""

import math
from collections.abc import Iterator
from pathlib import Path

from fedseg.budget.cap import lifetime
from fedseg.budget.plan import plan_of, planned_entries
from fedseg.data.cases import SiteData
from fedseg.ledger import FILE, distinct, read, released
from fedseg.privacy.accounting import epsilon
from fedseg.privacy.delta import delta_text
from fedseg.study import Study


def sentences(study: Study, site: str, data: SiteData, state: Path, run: str) -> Iterator[str]:
    """One sentence for each thing that an operator should know.

    Args:
        study: what is asked.
        site: the site's id.
        data: its patients, of whom nothing of this is sent.
        state: its state folder, with the ledger of all that they have spent.
        run: the training run.
    """
    plan, own = plan_of(study), study.hash().hex()
    yield f"study '{study.study.name}', hash {own}: read it aloud to the other parties"
    sites = ", ".join(study.site_ids)
    yield f"trained: {', '.join(study.names)} in {plan.rounds} rounds of {plan.local_steps} steps, by {sites}"
    if study.asked is not None:
        yield (
            "the first round asks for statistics of all patients in training: how many, of each class or structure, "
            "sizes, and the images' mean and deviation, in one sum over all sites"
        )
    tested = len({case.patient for case in data.test})
    yield f"on {len(data.patients)} patients in training here and {tested} held out; images stay on this machine"
    if not study.trust.claims_epsilon or plan.delta is None or study.privacy.epsilon is None:
        yield f"mechanism '{plan.mechanism}': no epsilon is promised to these patients"
        return
    delta, at = plan.delta, f"at delta {delta_text(plan.delta)}, {plan.unit}"
    spent = distinct(line.entry for line in read(state / FILE))
    planned = planned_entries(study, site, run)
    yield f"asked: epsilon {study.privacy.epsilon:g} {at}; {study.trust.sentence}"
    yield f"spent by these patients so far, over all studies: epsilon {_figure(epsilon(released(spent), delta))}"
    after = epsilon(released(distinct([*spent, *planned])), delta)
    yield f"spent after this study, at most: epsilon {_figure(after)}"
    cap = lifetime(state)
    if cap is None:
        yield "this data set has no budget for life: `fedseg ledger budget` gives it one"
    else:
        most = f"epsilon {cap.epsilon:g} at delta {delta_text(cap.delta)}"
        yield f"budget for life: {most}, and nothing is charged above it"


def _figure(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "none any more (rounds without protection are among them)"
