"""A site's part of the sum of statistics of all patients' images, charged in the ledger before anything is counted.

What is asked, and its noise, is `fedseg.mechanisms.asking`'s. Each patient in training has one summary, of its own
images alone, and everybody is in it, whether drawn later or not; nobody who is held out is. Must never: let one
patient's presence change another's summary, or count before the ledger's event is on disk.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fedseg.budget.charge import charge
from fedseg.data.cases import Case, SiteData
from fedseg.ledger import Ledger
from fedseg.mechanisms.asking import SIZES, Asked
from fedseg.privacy.counted import counted
from fedseg.study import Study
from fedseg.tasks.table import task_of
from fedseg.update import StatisticsUpdate
from secagg.encoding import digest
from secagg.prg import KEY_BYTES, Stream


def answer(
    data: SiteData, study: Study, *, site: str, training_run: str, round_number: int, ledger: Ledger
) -> StatisticsUpdate:
    """Charge the sum, then count this site's patients and add the noise.

    Args:
        data: the site's cases; those in training are counted.
        study: asks for statistics.
        site: the site's id.
        training_run: name of the run whose rounds are counted.
        round_number: at least 1.
        ledger: the site's ledger.

    Raises:
        BudgetExceededError: this sum would pass the budget; nobody was counted.
        LedgerError: the ledger is damaged or cannot be written; nobody was counted.
    """
    asked = study.asked
    if asked is None:
        raise TypeError("the study asks for no statistics")
    event_id = charge(ledger, study, site, training_run, round_number, asking=True)
    staying = set(data.patients if ledger.payers is None else ledger.payers.staying)
    noise, stream = asked.noise, Stream(_key(study, site, round_number))
    cases: dict[str, list[Case]] = {patient: [] for patient in data.patients if patient in staying}
    for case in data.train:
        if case.patient in cases:
            cases[case.patient].append(case)
    total = counted(
        (summary(own, study, asked) for own in cases.values()),
        asked.length,
        asked.sensitivity,
        None if noise is None else lambda n: noise.draw(n, stream),
    )
    return StatisticsUpdate(total, site, event_id, study.trust, study.secagg.bits)


def summary(cases: Sequence[Case], study: Study, asked: Asked) -> NDArray[np.int64]:
    """One patient's summary, (asked.length,): the mean over the patient's images of what each is."""
    return asked.summary(*(np.mean(parts, axis=0) for parts in zip(*map(_parts(study, asked), cases), strict=True)))


def _parts(study: Study, asked: Asked) -> Callable[[Case], Iterator[NDArray[np.float64]]]:
    task = task_of(study)
    low, high = (np.array(ends)[:, None] for ends in zip(*asked.ranges, strict=True))

    def parts(case: Case) -> Iterator[NDArray[np.float64]]:
        """Of one image."""
        yield task.shares(case)
        sides = np.multiply(case.image.shape[1:], case.spacing)
        yield np.eye(len(SIZES) + 1)[int(np.searchsorted(SIZES, float(sides.max())))]
        values = case.image.reshape(len(low), -1).astype(np.float64)
        values = ((values - low) / (high - low)).clip(0, 1)
        yield values.mean(1)
        yield (values * values).mean(1)

    return parts


def _key(study: Study, site: str, round_number: int) -> bytes:
    seed = study.study.seed
    return secrets.token_bytes(KEY_BYTES) if seed is None else digest("statistics", seed, site, round_number)
