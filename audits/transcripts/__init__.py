"""Both verifiers on the same transcripts and on whole runs, and the second one with each of its checks switched off."""

from audits.base import Audit, Result, Task, later


def agreement(task: Task) -> Result:
    """Honest transcripts, rounds of tests/vectors, one lie each, one flipped bit each: the same verdict and check."""
    from audits.transcripts.agreement import of_flips, of_lies, of_vectors
    from audits.transcripts.lies import CASES, HONEST

    flips = 150 if task.depth == "quick" else 3000
    kinds = {
        "honest": of_lies(HONEST, task.out),
        "vectors": of_vectors(task.out),
        "lies": of_lies(CASES, task.out),
        "flipped_bits": of_flips(task.out, flips, task.seed),
    }
    figures: dict[str, float | int | str] = {"seed": task.seed}
    against = []
    for kind, comparisons in kinds.items():
        task.progress(f"{kind}: two verifiers on each file")
        found = list(comparisons)
        figures[f"{kind}_compared"] = len(found)
        figures[f"{kind}_refused_by_both"] = sum(one.ours.status == one.theirs.status == 1 for one in found)
        against += [one for one in found if not one.agree]
    figures["disagreements"] = len(against)
    rows = tuple(
        {"case": one.name, "expected": one.expected or "", "second verifier": f"{one.ours.status} {one.ours.check}",
         "secagg": f"{one.theirs.status} {one.theirs.check}"}
        for one in against
    )  # fmt: skip
    compared = sum(int(value) for name, value in figures.items() if name.endswith("_compared"))
    refused = sum(int(value) for name, value in figures.items() if name.endswith("_by_both"))
    says = (
        f"Two verifiers, one written from the specification alone, read {compared} studies of transcripts and "
        f"{'agreed on every verdict and named check' if not against else f'disagreed on {len(against)}'}; "
        f"{refused} were refused by both."
    )
    return Result("violated" if against else "holds", says, figures, rows=rows)


def switched_off(task: Task) -> Result:
    """Each check of the second verifier switched off: at least one transcript that must be refused then gets by."""
    from audits.transcripts.lies import CASES
    from audits.verifier.judge import CHECKS
    from audits.verifier.policy import UnreadableError
    from audits.verifier.study import verify

    passed = dict.fromkeys(CHECKS, 0)
    told = dict.fromkeys(CHECKS, 0)
    for case in CASES:
        task.progress(case.name)
        reader, paths = case.write(task.out)
        told[case.check] += 1
        try:
            passed[case.check] += verify(paths, reader, {case.check}).exit_code == 0
        except UnreadableError:
            continue
    needless = [check for check in CHECKS if not passed[check]]
    rows: tuple[dict[str, float | int | str], ...] = tuple(
        {"check": check, "lies": told[check], "get by without it": passed[check]} for check in CHECKS
    )
    says = (
        f"{len(CASES)} transcripts with one lie each: for each of the {len(CHECKS)} checks at least one gets by "
        "where it is switched off."
        if not needless
        else f"No lie gets by although {', '.join(needless)} is switched off: the check is not seen to work."
    )
    return Result("no power" if needless else "holds", says, {"lies": len(CASES), "checks": len(CHECKS)}, rows=rows)


AUDITS = (
    Audit(
        "transcripts.agreement",
        "two verifiers of transcripts agree, verdict and check",
        (),
        {"quick": 60, "full": 300},
        agreement,
    ),
    Audit(
        "transcripts.switched-off",
        "each check of the second verifier is seen to refuse something",
        (),
        {"quick": 10, "full": 10},
        switched_off,
    ),
    Audit(
        "transcripts.runs",
        "two verifiers of whole runs agree, from the start to the model file, whatever the step",
        (),
        {"full": 30},
        later("transcripts.whole"),
    ),
)
