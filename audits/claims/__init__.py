"""What is claimed, and whether it still says and shows what `claims.yaml` writes down."""

from audits.base import Audit, Result, Task


def _book(task: Task) -> Result:
    from audits.claims import checks

    return checks.book(task)


def _collected(task: Task) -> Result:
    from audits.claims import checks

    return checks.collected(task)


def _commands(task: Task) -> Result:
    from audits.claims import checks

    return checks.commands(task)


def _evidence(task: Task) -> Result:
    from audits.claims import checks

    return checks.evidence(task)


AUDITS = (
    Audit(
        "claims.book",
        "every quote stands on its page, every test, audit, script and section is there",
        (),
        {"quick": 5, "full": 5},
        _book,
    ),
    Audit("claims.collected", "pytest finds every test that a claim names", (), {"full": 40}, _collected),
    Audit("claims.commands", "the cheap commands print what the claims say", (), {"quick": 30, "full": 30}, _commands),
    Audit("claims.evidence", "every test that a claim names one by one passes", (), {"full": 200}, _evidence),
)
