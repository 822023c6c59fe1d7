"""What is claimed, and whether it still says and shows what `claims.yaml` writes down."""

from audits.base import Audit, later

AUDITS = (
    Audit(
        "claims.book",
        "every quote stands on its page, every test, audit, script and section is there",
        (),
        {"quick": 5, "full": 5},
        later("claims.checks", "book"),
    ),
    Audit(
        "claims.collected",
        "pytest finds every test that a claim names",
        (),
        {"full": 40},
        later("claims.checks", "collected"),
    ),
    Audit(
        "claims.commands",
        "the cheap commands print what the claims say",
        (),
        {"quick": 30, "full": 30},
        later("claims.checks", "commands"),
    ),
    Audit(
        "claims.evidence",
        "every test that a claim names one by one passes",
        (),
        {"full": 200},
        later("claims.checks", "evidence"),
    ),
)
