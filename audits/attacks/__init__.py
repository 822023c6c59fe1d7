"""Attacks that have to succeed where the protection is out, and to fail where it is in: each shows both."""

from audits.attacks.command import on_real
from audits.base import Audit, later

AUDITS: tuple[Audit, ...] = (
    Audit(
        "attacks.identification",
        "Which of 64 candidates is in an update: without protection, from a secure sum, under differential privacy",
        (),
        {"quick": 15, "full": 60},
        later("attacks.identification", "run"),
    ),
    Audit(
        "attacks.imprint",
        "A malicious network that reads images off a secure sum, and what real sites say to it",
        (),
        {"quick": 12, "full": 25},
        later("attacks.imprint", "run"),
    ),
    Audit(
        "attacks.inversion",
        "Pictures from a segmentation network's gradient: of one site, of a secure sum, under differential privacy",
        (),
        {"quick": 40, "full": 240},
        later("attacks.inversion", "run"),
    ),
    Audit(
        "attacks.membership",
        "Who was in the training of a finished model, by its losses: learned by heart, federated, and with noise",
        (),
        {"quick": 55, "full": 240},
        later("attacks.membership", "run"),
    ),
    Audit(
        "attacks.reruns",
        "Second sums of the same updates, asked for in every way, and what each gives where its check is out",
        (),
        {"quick": 8, "full": 8},
        later("attacks.reruns", "run"),
    ),
)
COMMANDS = {"real": on_real}
