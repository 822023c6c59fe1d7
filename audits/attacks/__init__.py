"""Attacks that have to succeed where the protection is out, and to fail where it is in: each shows both."""

from functools import partial
from importlib import import_module

from audits.base import Audit, Result, Task


def _run(module: str, task: Task) -> Result:
    """Loads torch and the product, which the list of audits does without."""
    result: Result = import_module(f"audits.attacks.{module}").run(task)
    return result


AUDITS: tuple[Audit, ...] = (
    Audit(
        "attacks.identification",
        "Which of 64 candidates is in an update: without protection, from a secure sum, under differential privacy",
        (),
        {"quick": 15, "full": 60},
        partial(_run, "identification"),
    ),
    Audit(
        "attacks.imprint",
        "A malicious network that reads images off a secure sum, and what real sites say to it",
        (),
        {"quick": 12, "full": 25},
        partial(_run, "imprint"),
    ),
    Audit(
        "attacks.inversion",
        "Pictures from a segmentation network's gradient: of one site, of a secure sum, under differential privacy",
        (),
        {"quick": 30, "full": 240},
        partial(_run, "inversion"),
    ),
    Audit(
        "attacks.membership",
        "Who was in the training of a finished model, by its losses: learned by heart, federated, and with noise",
        (),
        {"quick": 55, "full": 240},
        partial(_run, "membership"),
    ),
    Audit(
        "attacks.reruns",
        "Second sums of the same updates, asked for in every way, and what each gives where its check is out",
        (),
        {"quick": 8, "full": 8},
        partial(_run, "reruns"),
    ),
)
