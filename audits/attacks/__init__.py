"""Attacks that have to succeed where the protection is out, and to fail where it is in: each shows both."""

from audits.base import Audit, Result, Task


def _identification(task: Task) -> Result:
    from audits.attacks.identification import run

    return run(task)


def _imprint(task: Task) -> Result:
    from audits.attacks.imprint import run

    return run(task)


AUDITS: tuple[Audit, ...] = (
    Audit(
        "attacks.identification",
        "Which of 64 candidates is in an update: without protection, from a secure sum, and under differential privacy",
        (),
        {"quick": 15, "full": 60},
        _identification,
    ),
    Audit(
        "attacks.imprint",
        "A malicious network that reads images off a secure sum, and what real sites say to it",
        (),
        {"quick": 12, "full": 25},
        _imprint,
    ),
)
