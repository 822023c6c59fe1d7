"""The report's sentences: warnings, summary, and what is guaranteed against whom. Read this file to check its claims.

It must never claim more than the run gave: no privacy sentence for a seeded run or `mechanism = "none"`, no hidden
updates for a plain sum. It never calls data anonymous or anything compliant.
"""

import re
import shlex
from collections.abc import Iterator, Sequence

from fedseg.events import Burned, Dropped, RoundEnded, StudyStarted
from fedseg.mechanisms.table import no_claim, trust_in
from fedseg.privacy.delta import delta_text, too_large
from fedseg.privacy.trust import NO_CLAIM_SEEDED, SEEDED
from fedseg.records import Dice, Metrics, Privacy
from fedseg.report.folder import Run, burned, dropouts, ended, of_kind
from fedseg.summary import STARTS

HARMLESS = frozenset(
    f"--{option}"
    for options in (
        ["plain", "seed", "set", "alone", "resume", "charge", "leave-out", "seeds", "epsilon", "rows"],
        ["host", "port", "patience", "rejoin-seconds", "training-seconds", "transcripts"],
        ["coordinator", "accept-exposure"],
    )
    for option in options
)
"""Options of commands that run a study whose values are no paths."""
LEFT_OUT = "..."
MEASURES_SAID = (
    "HD95 is the 95th percentile of the distances between the two surfaces, NSD the share of both surfaces that is "
    "within the millimetres named of the other, volume similarity 1 less the difference of the volumes over their sum. "
    "Where only one of truth and prediction has a structure, Dice, NSD and volume similarity are 0 and HD95 is "
    "undefined; where both lack it, nothing is counted."
)

_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def _count(number: int, noun: str, several: str = "") -> str:
    plural = noun if number == 1 else several or f"{noun}s"
    return f"{_WORDS[number] if number < len(_WORDS) else f'{number:,}'} {plural}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"


def seeded(run: Run) -> bool:
    """Whether the noise came from a seed that somebody knows."""
    return run.metrics.seeded_no_privacy_claim or run.study.seed is not None


def privacy(run: Run) -> Privacy | None:
    """The accountant's guarantee, None where the mechanism claims none."""
    return run.metrics.privacy if trust_in(run.study.mechanism, run.study.max_corrupt).claims_epsilon else None


def claimed(run: Run) -> Privacy | None:
    """The guarantee where one may be claimed: noise from the operating system, and an epsilon that sites reported."""
    found = privacy(run)
    return found if found and not seeded(run) and found.epsilon > 0 else None


def pictures_of_patients(run: Run) -> bool:
    """Whether pictures are of a site's own cases; a coordinator shows public phantoms under another name."""
    return run.layout != "phantom" and any(example.site in run.study.sites for example in run.examples)


def grid_sentence(dice: Dice, curve: bool = False) -> str:
    """On which grid Dice was computed; empty where the run did not record it.

    Args:
        dice: of the run.
        curve: whether Dice after each round, which is of the working grid, is shown with it.
    """
    grid = dice.grid
    if grid is None:
        return ""
    sides = " x ".join([str(grid.size)] * grid.dims)
    wide = f", {_millimetres(grid.spacing)} wide" if grid.spacing else ""
    apart = f", with the files' own slices {_millimetres(grid.apart)} apart" if grid.apart else ""
    working = f"study's working grid of {sides} {'pixels a slice' if grid.dims == 2 else 'voxels'}"
    if grid.where == "file":
        after = f" Dice after each round is of the {working}." if curve else ""
        return f"Computed on the grid of each label map's own file, voxels{wide.removeprefix(',')}.{after}"
    reason = "its patients are made on it" if grid.where == "made" else "not on the files' own grids"
    return f"Dice is computed on the {working}{wide}{apart}; {reason}."


def which_model(metrics: Metrics) -> str:
    """Which model was scored and given out, where it is not simply the last one; else empty."""
    said = ""
    if metrics.ema:
        said = f"The model is the running average of all rounds' models (ema = {metrics.ema:g})."
    if metrics.personal == "norm":
        said += " Scale and shift of every norm are each site's own and in no sum: a site is judged by its own model."
    return said.strip()


def below_start(metrics: Metrics) -> str:
    """That training has made a model worse, or taught it nothing; empty where it is better, or nobody can say."""
    final = metrics.dice.mean
    for name in STARTS:
        start = metrics.baselines.get(name)
        if final is not None and start is not None and start.n == final.n and final.mean <= start.mean:
            return (
                f"this model is no better than its start: mean {metrics.dice.measure} {final.mean:.2f} after "
                f"training, and {start.mean:.2f} {name}; do not use it"
            )
    return ""


def _millimetres(found: tuple[float, float]) -> str:
    low, high = (f"{value:.2g}" for value in found)
    return f"{low} mm" if low == high else f"{low} to {high} mm"


def simulated(run: Run) -> bool:
    """Whether one process held the data of all sites."""
    return not {"simulate", "evaluate", "compare"}.isdisjoint(run.metrics.command.split()[:2])


def life_sentence(metrics: Metrics) -> str:
    """Of a simulation on real images, whether these patients' own ledgers know of it; empty elsewhere."""
    if metrics.charged_for_life is None:
        return ""
    if metrics.charged_for_life:
        return "This run is charged in the ledgers that these patients' images have for life."
    return (
        "Nothing was charged for life: these patients' own ledgers do not know this run. Train a model that is to be "
        "published with --charge, and without a seed."
    )


def without_paths(command: str) -> str:
    """A command as a page may show it that is forwarded: names of folders and files can be names of patients.

    Of an option that this version does not know to be harmless the value is left out.
    """
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    shown, taken = [], False
    for word in words:
        option, equals, _ = word.partition("=")
        is_option = word.startswith("-")
        hidden = is_option and option not in HARMLESS
        if taken:
            shown.append(LEFT_OUT)
        elif hidden and equals:
            shown.append(f"{option}={LEFT_OUT}")
        else:
            shown.append(word if is_option else re.split(r"[/\\]", word)[-1])
        taken = hidden and not equals and not taken
    return " ".join(shown)


def epsilon_text(epsilon: float | None) -> str:
    """Epsilon with two decimals, or two figures where that would say 0.0."""
    if epsilon is None:
        return "n/a"
    return f"{epsilon:.2f}" if epsilon >= 0.1 else f"{epsilon:.2g}"


def guarantee(found: Privacy) -> str:
    """The pair as "(ε = 7.94, δ = 0.0003)", never broken over two lines."""
    return f"(ε\u00a0=\u00a0{epsilon_text(found.epsilon)}, δ\u00a0=\u00a0{delta_text(found.delta)})"


def privacy_sentence(metrics: Metrics) -> tuple[str, str]:
    """The claim with unit, delta and trust model, or that there is none: what to stress, and the rest."""
    found = metrics.privacy
    if found is None:
        return no_claim(metrics.mechanism), ""
    claim = (
        f"epsilon {found.epsilon:.2f} per {found.unit} at delta {delta_text(found.delta)} ({found.neighbouring}); "
        f"{found.trust}"
    )
    if metrics.seeded_no_privacy_claim:
        return NO_CLAIM_SEEDED, f"; unseeded it would be {claim}"
    return claim, f"; {found.sentence}"


def warnings(run: Run, *, with_patients: bool = False) -> Iterator[str]:
    """What a reader must know before any number, most important first."""
    study, found = run.study, privacy(run)
    if with_patients:
        yield "private: shows images of patients and must not leave the place where the data is; forward report.html"
    if run.metrics.unfinished:
        done = f"{run.metrics.protocol.rounds_completed} of {study.rounds} rounds have a sum"
        yield f"the study did not finish: {done}; {run.metrics.unfinished}"
    if said := below_start(run.metrics):
        yield said
    if not trust_in(study.mechanism, study.max_corrupt).claims_epsilon:
        yield no_claim(study.mechanism)
    if seeded(run):
        yield SEEDED
    if found and found.epsilon <= 0:
        yield "no privacy claim: no site has reported what it spent"
    if not study.secure:
        yield "plain sum: the coordinator saw every update"
    if found and found.unit != "patient":
        yield f"the privacy unit is the {found.unit}, not the patient: weaker than it sounds for everybody with several"
    if found and study.budget is not None and found.epsilon > study.budget * (1 + 1e-6):
        yield f"epsilon {epsilon_text(found.epsilon)} is above the budget of {study.budget:.3g}"
    patients = sum(site.n_train or 0 for site in run.metrics.dice.sites.values())
    if found and (said := too_large(found.delta, patients)):
        yield said
    much = [text for end in ended(run) for text in end.much_cut.values()]
    if much:
        more = f"; {len(much) - 1} more updates were cut much" if len(much) > 1 else ""
        yield f"{much[-1]}{more}"
    broken = sorted({event.round for event in of_kind(run, RoundEnded) if event.exact is False})
    if broken:
        rounds = ", ".join(map(str, broken))
        yield f"the sum of round {rounds} is not the sum of the survivors: do not use this model"


def _asked(study: StudyStarted) -> str:
    if study.task == "classification":
        return f"tell {_count(len(study.structures), 'class', 'classes')} apart"
    return f"outline {_count(len(study.structures), 'structure')}"


def summary(run: Run) -> str:
    """The whole study in one sentence."""
    study, protocol, found = run.study, run.metrics.protocol, claimed(run)
    sites, drops = _count(len(study.sites), "site").capitalize(), len(dropouts(run))
    parts = [
        f"{sites} trained one model to {_asked(study)} in "
        f"{_count(protocol.rounds_completed, 'round')}{'' if simulated(run) else ', and no image left its site'}"
    ]
    if found:
        parts.append(f"what the model can reveal about one {found.unit} is bounded by {guarantee(found)}")
    if study.secure:
        parts.append(f"the coordinator could open only sums of at least {_count(study.min_survivors, 'update')}")
    if drops:
        parts.append("one site dropped out of a round" if drops == 1 else f"sites dropped out {drops} times")
    if protocol.burned:
        parts.append(f"{_count(protocol.burned, 'round')} burned, without a sum")
    elif drops and not run.metrics.unfinished:
        parts[-1] += ", and every round completed"
    return "; ".join(parts) + "."


def guarantees(run: Run) -> Iterator[tuple[str, str, str]]:
    """(against whom, what they learn at most, what that rests on)."""
    study, found, c = run.study, claimed(run), run.study.max_corrupt
    helpers = f"up to {_count(c, 'site')}"
    if study.secure:
        yield (
            f"The coordinator, even one that lies, together with {helpers}",
            f"the sum of at least {study.min_survivors} updates a round ({study.min_survivors - c} of them honest), "
            "and who took part; never one honest site's update",
            f"at most {c} of {study.n} sites collude; threshold {study.threshold} of {study.n}; {study.suite}. "
            "The coordinator can refuse to work",
        )
        yield (
            f"Another site, or {helpers} together with the coordinator",
            "the same sums, and the model after every round",
            "each site checks signatures, shares and the list of survivors itself before it opens anything",
        )
        pqc = study.suite == "MLKEM768_X25519"
        yield (
            "Somebody who records all messages today",
            "sizes and times while TLS holds; at most what the coordinator learns if it is broken",
            f"single updates stay sealed under {study.suite}: {'also' if pqc else 'but not'} against a quantum "
            f"computer that comes later{', not against one that takes part today' if pqc else ''}",
        )
    else:
        alone = found is not None and trust_in(study.mechanism, study.max_corrupt).each_update_private
        noised = f"; each is {guarantee(found)}-private by itself" if found and alone else ""
        yield "The coordinator", f"every site's update, one by one{noised}", "nothing hides them: this was a plain sum"
    yield "Anybody who has the model, now or later", *_about_patients(run)
    yield (
        "A site that wants to spoil the model",
        "it can: updates are clipped, not checked for honesty",
        "trust in the enrolled sites",
    )


def _about_patients(run: Run) -> tuple[str, str]:
    found = privacy(run)
    if found is None:
        return "no bound: models can reveal who trained them", no_claim(run.study.mechanism)
    if seeded(run):
        return "no bound is claimed", f"the run was seeded; unseeded, the same settings give {guarantee(found)}"
    if claimed(run) is None:
        return "no bound is claimed", "no site has reported what it spent"
    trust, neighbouring = (
        trust_in(run.study.mechanism, run.study.max_corrupt),
        found.neighbouring or f"add or remove one {found.unit}",
    )
    return (
        f"about any one {found.unit}: {guarantee(found)}-differential privacy, whatever else they know",
        f"{trust.sentence}; mechanism '{run.study.mechanism}', {neighbouring}. "
        "The numbers on test patients in this report are not covered by epsilon",
    )


def account(run: Run) -> Iterator[str]:
    """What happened between the sites, the same words at every party: it follows from what sites signed."""
    ends = {end.round: end for end in ended(run)}
    for drop in dropouts(run):
        end = ends[drop.round]
        exact = ", checked value by value" if end.exact else ""
        yield (
            f"Round {drop.round}: {drop.site} dropped after it had shared its keys. Its update is not in the sum, "
            f"which is that of {len(end.included)} of {len(run.study.sites)} sites ({_listed(end.included)}){exact}. "
            + (f"It is in the sum of round {drop.back} again." if drop.back else "It is in no later sum.")
        )
    spent = " What it cost in epsilon stays spent." if privacy(run) else ""
    for number in burned(run):
        yield f"Round {number} burned: it has no sum, and its number is not used again.{spent}"
    if run.metrics.unfinished:
        done = f"{run.metrics.protocol.rounds_completed} of {run.study.rounds} rounds have a sum"
        yield f"The study did not finish, {done}: {run.metrics.unfinished}."


def seen_here(run: Run) -> Iterator[str]:
    """What only this party knows: attempts that ended, and who fell silent without being a dropout of a sum."""
    for failed in of_kind(run, Burned):
        yield f"Round {failed.round}, attempt {failed.attempt}, ended without a sum: {failed.reason}."
    ends = {end.round: end for end in ended(run)}
    told = {(drop.round, drop.site) for drop in dropouts(run)}
    for silent in of_kind(run, Dropped):
        if (silent.round, silent.site) in told:
            continue
        after = f"after {silent.after}" if silent.after else "before its first message"
        if silent.round not in ends:
            what = "and the round did not complete"
        elif silent.site in ends[silent.round].included:
            what = "when its update was already in the sum"
        else:
            what = "and took no part"
        yield f"Round {silent.round}: {silent.site} fell silent {after}, {what}."


def most_cut(run: Run) -> tuple[float, int, str] | None:
    """Share, round and site of the update of which `clip_range` cut most, of those that this party knows."""
    rates = [
        (share, end.round, site) for end in ended(run) for site, share in end.clip_rate.items() if share is not None
    ]
    return max(rates, default=None)
