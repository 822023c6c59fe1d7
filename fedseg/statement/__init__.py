"""The privacy statement: one page for a data protection officer, computed from ledgers and transcripts, and its JSON.

It says what was promised to whom, what these patients have paid in all studies, what is not covered, and what of it
was verified. `words` has its sentences, `facts` its figures, `origin` who wrote it. Must never: show a patient, a
number of patients or the name of a folder, load anything, or claim more than `fedseg.verifying` could see.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from fedseg import palette
from fedseg.evidence import Evidence
from fedseg.page import save, template
from fedseg.privacy.delta import delta_text
from fedseg.statement import words
from fedseg.statement.facts import PRIORS, Facts, accounts_of, achieved_of, as_dict, delta_of
from fedseg.statement.origin import origin
from fedseg.verifying import examined
from fedseg.verifying.material import SIMULATION, Material, gather

__all__ = ["facts_of", "write_statement"]


def write_statement(
    paths: Sequence[Path], target: Path, roster: Path | None = None, delta: float | None = None
) -> Facts:
    """Write `target` and, beside it, the same as JSON.

    Args:
        paths: as `fedseg.verifying.verify_run`; ledgers alone do as well.
        target: the page, whose name ends in .html.
        roster: the reader's own federation.toml.
        delta: in place of the study's.

    Returns:
        What the page says.

    Raises:
        ConfigError: as `verify_run`; no delta is known; or nothing can be written there.
        PrivacyError: two accountants disagree.
    """
    facts = facts_of(paths, roster, delta)
    save(target, _page(facts))
    save(target.with_suffix(".json"), json.dumps(as_dict(facts), indent=1))
    return facts


def facts_of(paths: Sequence[Path], roster: Path | None = None, delta: float | None = None) -> Facts:
    """What a statement on these folders and ledgers says; arguments and errors of `write_statement`."""
    given = gather(paths, roster, runs=False)
    study = given.study if given.runs else None
    seeded = study is not None and study.study.seed is not None
    chosen = delta_of(given, delta)
    accounts = accounts_of(given, chosen, unseeded=seeded)
    known = {account.site for account in accounts}
    stated = {
        site: spent
        for run in given.runs
        if run.metrics is not None and run.metrics.privacy is not None
        for site, spent in run.metrics.privacy.per_site.items()
        if spent is not None and site not in known
    }
    return Facts(
        study=study,
        delta=chosen,
        plain=bool(given.runs) and given.runs[0].plain,
        simulation=any(run.role == SIMULATION for run in given.runs),
        seeded=seeded,
        accounts=accounts,
        achieved=achieved_of(given),
        stated=stated,
        rounds=len(given.log) if given.runs else 0,
        planned=study.study.rounds if study else 0,
        evidence=_without_folders(examined(given), given) if given.runs else None,
        broken=tuple(_short(ledger.broken, given) for ledger in given.ledgers if ledger.broken),
        made_utc=datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        origin=origin(),
        inputs=_named(given),
    )


def _page(facts: Facts) -> str:
    page = template(
        Path(__file__).parent,
        "template.html",
        epsilon=words.epsilon_text,
        delta=delta_text,
        percent=words.percent,
        pair=lambda spent: words.pair(spent, facts.delta),
    )
    return page.render(
        facts=facts,
        study=facts.study,
        evidence=facts.evidence,
        title=facts.study.study.name if facts.study else ", ".join(account.site for account in facts.accounts),
        words=words,
        warnings=list(words.warnings(facts)),
        observers=list(words.observers(facts)),
        not_covered=list(words.not_covered(facts)),
        priors=PRIORS,
        palette=palette,
    )


# --- Names of folders can be names of patients ------------------------------------------------------------------------


def _named(given: Material) -> dict[str, str]:
    """SHA-256 of what was looked at, by whose it is and the name of the file."""
    found: dict[str, str] = {}
    for name, value in given.inputs().items():
        path = Path(name)
        whose = next((str(run) for run in given.runs if path.is_relative_to(run.path)), "")
        whose = next((str(ledger) for ledger in given.ledgers if ledger.path == path), whose)
        found[f"{whose}: {path.name}"] = value
    return found


def _without_folders(evidence: Evidence, given: Material) -> Evidence:
    findings = tuple(replace(finding, sentence=_short(finding.sentence, given)) for finding in evidence.findings)
    return replace(evidence, findings=findings)


def _short(sentence: str, given: Material) -> str:
    folders = {run.path for run in given.runs} | {ledger.path.parent for ledger in given.ledgers}
    for folder in sorted(map(str, folders), key=len, reverse=True):
        sentence = sentence.replace(f"{folder}/", "").replace(folder, "the folder")
    return sentence
