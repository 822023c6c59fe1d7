"""Primitives, seeds and what a server sees: known answers, statistics, counts of entropy, banned calls, timing."""

from audits.base import Audit
from audits.crypto import banned, birthday, entropy, known_answers, server_view, timing

AUDITS = (
    Audit(
        "crypto.known-answers",
        "published answers of RFCs and Wycheproof, through secagg's own entry points",
        (),
        {"quick": 4, "full": 4},
        known_answers.run,
    ),
    Audit(
        "crypto.server-view",
        "masked vectors look uniform to the server, alone and in pairs",
        (),
        {"quick": 4, "full": 15},
        server_view.run,
    ),
    Audit(
        "crypto.birthday", "of 500,000 seeds of each kind none comes twice", (), {"quick": 7, "full": 18}, birthday.run
    ),
    Audit(
        "crypto.entropy",
        "each byte that a round asks the operating system for is one that the specification asks for",
        (),
        {"quick": 2, "full": 2},
        entropy.run,
    ),
    Audit(
        "crypto.banned",
        "no generator that is not cryptographic, nothing unpickled, no secret compared with ==",
        (),
        {"quick": 2, "full": 2},
        banned.run,
    ),
    Audit(
        "crypto.timing",
        "whether times of operations on secrets tell what they are (reported, not gated)",
        (),
        {"quick": 2, "full": 8},
        timing.run,
    ),
)
