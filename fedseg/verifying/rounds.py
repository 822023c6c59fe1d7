"""R-01 to R-04: study, policy, transcripts and log are of one run, and say the same of it."""

from collections.abc import Iterator

from fedseg.errors import ConfigError
from fedseg.events import RoundEnded, RoundStarted
from fedseg.evidence import HELD, NOT_APPLICABLE, NOT_CHECKED, VIOLATED, Finding
from fedseg.models import study_of
from fedseg.runfolder import POLICY
from fedseg.verifying.material import SIMULATION, Material, Run
from secagg.errors import SecAggError
from secagg.files import load_policy
from secagg.transcript_files import Published, context_of, verify


def r01_study(given: Material) -> Iterator[Finding]:
    """R-01: one study hash, recomputed from study.toml, in log, figures, model, ledgers and transcripts."""
    own = given.study.hash().hex()
    for run in given.runs:
        named = {"study.toml": run.study.hash().hex(), "events.jsonl": run.first.study_hash}
        if run.metrics is not None:
            named["metrics.json"] = run.metrics.study_hash
        if run.model.is_file():
            try:
                named[run.model.name] = study_of(run.model).hash().hex()
            except ConfigError as error:
                yield Finding("R-01", VIOLATED, str(run), str(error))
        named |= {path.name: context_of(path).task_hash.hex() for path in run.transcripts if given.is_of_run(path)}
        yield _same("R-01", str(run), named, own)
    for ledger in given.ledgers:
        entries = [entry for entry in ledger.entries.values() if entry.training_run == given.run_name]
        if entries:
            named = {f"entry of round {entry.round_number}": entry.study_hash for entry in entries}
            yield _same("R-01", str(ledger), named, own)


def _same(check: str, subject: str, named: dict[str, str], own: str) -> Finding:
    other = [where for where, study in named.items() if study != own]
    if other:
        said = f"{', '.join(other)} of another study than study.toml, whose hash is {own[:16]}"
        return Finding(check, VIOLATED, subject, said, len(named))
    return Finding(check, HELD, subject, f"study {own[:16]} in {len(named)} places", len(named))


def r02_policy(given: Material) -> Iterator[Finding]:
    """R-02: the policy that is handed to auditors is the one that follows from the study and the server's key."""
    for run in given.runs:
        path = run.path / POLICY
        if not path.is_file() and run.role == SIMULATION:
            yield Finding("R-02", NOT_APPLICABLE, str(run), "a simulation hands no policy to anybody")
        elif not path.is_file():
            yield Finding("R-02", NOT_CHECKED, str(run), f"{POLICY} is missing")
        else:
            try:
                same = load_policy(path).hash() == given.policy.hash()
            except SecAggError as error:
                yield Finding("R-02", VIOLATED, str(run), str(error))
                continue
            key = "the key of your roster" if given.federation else "the server key that it names itself"
            told = f"{POLICY} is that of the study with {key}" if same else f"{POLICY} is not that of the study"
            yield Finding("R-02", HELD if same else VIOLATED, str(run), told, 1)


def r03_transcripts(given: Material) -> Iterator[Finding]:
    """R-03: every transcript holds (T-01 to T-22), under the reader's own roster and the policy of the study."""
    for run in given.runs:
        if not run.transcripts:
            yield _none_kept("R-03", run, given)
        elif given.federation is None:
            said = f"no roster was given: whether sites signed {len(run.transcripts)} transcripts was not checked"
            yield Finding("R-03", NOT_CHECKED, str(run), said)
        else:
            verdict = verify(run.transcripts, given.policy, given.federation.pinned)
            if verdict.violation is not None:
                yield Finding("R-03", VIOLATED, str(run), str(verdict.violation))
            elif verdict.status == "holds":
                told = f"{len(verdict.rounds)} transcripts hold under your roster: T-01 to T-14 and T-18 to T-22"
                yield Finding("R-03", HELD, str(run), told, sum(verdict.items.values()))
            else:
                yield Finding("R-03", NOT_CHECKED, str(run), "; ".join(verdict.not_shown))


def _none_kept(check: str, run: Run, given: Material) -> Finding:
    if run.plain:
        return Finding(check, NOT_APPLICABLE, str(run), "a plain sum has no transcript")
    if run.ended.keys() <= given.rounds.keys():
        return Finding(check, NOT_APPLICABLE, str(run), "the transcripts of its rounds are in another folder here")
    return Finding(check, NOT_CHECKED, str(run), "no transcripts were kept here")


def r04_log(given: Material) -> Iterator[Finding]:
    """R-04: log and transcripts tell the same rounds: heads, models, and who is in each sum."""
    for run in given.runs:
        if run.plain:
            yield _none_kept("R-04", run, given)
            continue
        different = list(_differences(run, {number: told for number, (_, told) in given.rounds.items()}))
        if different:
            yield Finding("R-04", VIOLATED, str(run), "; ".join(different), len(given.rounds))
            continue
        missing = sorted(run.ended.keys() - given.rounds.keys())
        if missing:
            named = ", ".join(map(str, missing))
            yield Finding("R-04", NOT_CHECKED, str(run), f"transcripts of rounds {named} were not kept")
        if common := run.ended.keys() & given.rounds.keys():
            told = f"{len(common)} rounds: log and transcripts name one head, model and set of sites"
            yield Finding("R-04", HELD, str(run), told, len(common))


def _differences(run: Run, rounds: dict[int, Published]) -> Iterator[str]:
    begun = {(start.round, start.attempt): start.model_hash for start in run.of_kind(RoundStarted)}
    whole = max(run.ended, default=0)
    for number, told in rounds.items():
        end = run.ended.get(number)
        if end is None:
            if number < whole or run.metrics is not None:  # a broken run may have had one more
                yield f"round {number} has a transcript with a sum and is not in the log"
            continue
        yield from (f"round {number}: the log has another {what} than the transcript" for what in _other(end, told))
        started = begun.get((number, told.context.attempt))
        if started is not None and started != told.context.model_hash.hex():
            yield f"round {number}: the log began it from another model than the transcript"


def _other(end: RoundEnded, told: Published) -> Iterator[str]:
    if end.head != told.receipt.head.hex():
        yield "head"
    if end.included != told.included:
        yield "set of sites in the sum"
    if end.dropped != told.dropped:
        yield "set of dropped sites"
