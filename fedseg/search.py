"""Settings of a study, searched for: trials on made or public images, or on patients who pay for each of them.

A trial trains the study with other settings and scores it on patients that are set aside from those in training. Who is
held out for the study's own figures has no part in any trial. Where patients are somebody's, every trial is charged in
the ledgers that their images have for life, as a whole and before it begins, and one that would pass a budget is
refused. Which settings score best is a choice by scores that no epsilon covers; what is found says so. Optuna proposes
(tree-structured Parzen estimator, Bergstra et al. 2011) and keeps the trials in a file, so that the same command goes
on.
"""

import json
import os
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from fedseg.budget.cap import Cap
from fedseg.budget.charge import affordable_all, charge_all
from fedseg.budget.plan import metrics_entry, planned_entries
from fedseg.data.cases import SiteData, held_out
from fedseg.errors import ConfigError
from fedseg.evaluation import Scores, evaluate, joined, structure_means
from fedseg.exposure import MARKS, data_set_ledger
from fedseg.files import hold, read_text
from fedseg.ledger import Ledger
from fedseg.ledger.home import Home
from fedseg.models import build_model, load_model
from fedseg.runfolder import OWN_MODELS, RunFolder
from fedseg.simulate import Options, simulate
from fedseg.study import Study
from secagg.encoding import digest
from secagg.sqlite import SqliteStore
from secagg.writing import PRIVATE_FOLDER, write_whole

if TYPE_CHECKING:
    import optuna

Cohort: TypeAlias = Mapping[str, SiteData]
Images: TypeAlias = Literal["made", "public", "charged"]
Space: TypeAlias = Mapping[str, Any]
"""By "section.field": values to choose from, or {"low", "high", "step", "log"}."""

ASIDE = 0.25
"""Share of the patients in training on whom trials are scored."""

MOST = 1e12
"""Of a number in a space."""

SEARCHED = ("study", "model", "training", "federation", "privacy", "sharing")
FIXED = {
    *("study.name", "study.task", "study.structures", "study.classes", "study.seed", "model.start"),
    *("privacy.mechanism", "privacy.unit", "privacy.epsilon", "privacy.delta"),
}
"""What a study is about and what it promises is no setting."""

SAID = {
    "made": "made patients, who are nobody's: nothing was spent",
    "public": "images that whoever ran it calls public: nothing was charged",
    "charged": "patients' images, who paid for every trial; which trial scored best is a choice that no epsilon covers",
}
STORAGE, WORKING, TRIALS = "search.sqlite", "search.lock", "trials"
BEST = "best.toml"


@dataclass(frozen=True)
class Wanted:
    """How to search.

    Attributes:
        trials: that are to complete, those of earlier processes among them.
        images: whose the images are.
        out: folder of the trials.
        seed: of what is proposed, and of trials that are not charged.
        epsilon: of one trial, where they are charged.
        budget: of all trials together with everything else in a ledger, where they are charged.
        data: folder of the images, where they are charged.
    """

    trials: int
    images: Images
    out: Path
    seed: int = 1
    epsilon: float = 0.0
    budget: float = 0.0
    data: Path | None = None


@dataclass(frozen=True)
class Tried:
    """A trial.

    Attributes:
        number: from 0.
        values: by "section.field".
        score: mean over structures or classes of the mean over patients set aside; None where it failed.
        why: it failed.
    """

    number: int
    values: Mapping[str, Any]
    score: float | None
    why: str = ""


def read_space(path: Path) -> Space:
    """The settings to search over.

    Raises:
        ConfigError: no such file, no TOML, or a field that is no setting; one sentence.
    """
    try:
        content = tomllib.loads(read_text(path, "give the path of a space: see the page Studies"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML ({error}); correct that line") from error
    found: dict[str, Any] = {}
    for section, fields in content.items():
        if section not in SEARCHED or not isinstance(fields, dict):
            raise ConfigError(f"{path}: [{section}] is not searched over; use {', '.join(SEARCHED)}")
        for name, given in fields.items():
            field = f"{section}.{name}"
            if field in FIXED:
                raise ConfigError(f"{path}: {field} is what a study is about or promises, and no setting; remove it")
            if name not in (known := _fields(section)):
                raise ConfigError(f"{path}: [{section}] {name} is no field of a study; use one of {', '.join(known)}")
            ranged = isinstance(given, dict) and {"low", "high"} <= given.keys() <= {"low", "high", "step", "log"}
            if not (ranged or (isinstance(given, list) and given)):
                raise ConfigError(f"{path}: {field}: give a list of values, or {{ low = .., high = .., log = true }}")
            if wrong := _no_range(**given) if ranged else _no_values(given):
                raise ConfigError(f"{path}: {field}: {wrong}; correct it")
            found[field] = given
    if not found:
        raise ConfigError(f"{path}: names no setting; add one, such as [study] lr = {{ low = 1e-3, high = 1.0 }}")
    return found


def _fields(section: str) -> list[str]:
    kind: Any = Study.model_fields[section].annotation
    return [name for name in kind.model_fields if f"{section}.{name}" not in FIXED]


def _no_range(low: Any, high: Any, step: Any = None, log: Any = False) -> str:
    """Why nothing can be chosen between two ends; empty where something can."""
    ends = [low, high] if step is None else [low, high, step]
    if any(type(end) not in (int, float) or abs(end) > MOST for end in ends) or not isinstance(log, bool):
        return f"low, high and step are numbers up to {MOST:g}, and log is true or false"
    if not low < high:
        return "low is not below high"
    if log and (low <= 0 or step is not None):
        return "with log = true low is above 0, and there is no step"
    whole = isinstance(low, int) and isinstance(high, int)
    if step is not None and (step <= 0 or (whole and not isinstance(step, int))):
        return "step is above 0, and whole where both ends are"
    return ""


def _no_values(given: list[Any]) -> str:
    """Why something cannot be chosen of a list; empty where it can."""
    try:
        json.dumps(given, allow_nan=False)
    except (TypeError, ValueError):
        return "values are finite numbers, texts, true or false, and lists of them"
    return ""


def aside(cohort: Cohort) -> dict[str, SiteData]:
    """The patients in training alone, of whom some are set aside, each by its own identifier."""
    return {
        site: replace(
            data,
            train=tuple(case for case in data.train if not held_out(f"{site}/search", case.patient, ASIDE)),
            test=tuple(case for case in data.train if held_out(f"{site}/search", case.patient, ASIDE)),
        )
        for site, data in cohort.items()
    }


def search(study: Study, cohort: Cohort, space: Space, wanted: Wanted, told: Callable[[Tried], None]) -> Path:
    """Try settings until as many trials are complete as are wanted, or go on with an earlier process's.

    Args:
        study: what is trained; what the space does not name stays as it is.
        cohort: every site's data.
        space: see `read_space`.
        wanted: how.
        told: hears every trial as it ends.

    Returns:
        The study with the settings of the best trial, as a file that says what it was chosen on.

    Raises:
        ConfigError: a trial can never be charged, no trial succeeded, another process is at work in the folder, or
            Optuna is not installed.
        BudgetExceededError: the next trial would pass a budget; earlier ones are kept, and the best of them written.
    """
    parts, shown = aside(cohort), {**space}
    if not any(data.test for data in parts.values()):
        raise ConfigError("nobody can be set aside to score trials on: there are too few patients in training")
    wanted.out.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    who = [[site, [case.patient for case in data.train]] for site, data in sorted(cohort.items())]
    terms = json.dumps([shown, who, wanted.images, wanted.epsilon], sort_keys=True)
    name = digest("search", study.hash(), terms).hex()[:16]
    with _alone(wanted.out, study), _ledgers(study, cohort, wanted) as ledgers:
        trials = _opened(wanted, name)
        failed = 0
        while len(_complete(trials)) < wanted.trials:
            trial = trials.ask()
            values = {field: _proposed(trial, field, given) for field, given in space.items()}
            try:
                score = _tried(_with(study, values, wanted), parts, ledgers, wanted)
            except ConfigError as error:  # such as settings that do not fit, or training that diverges
                trials.tell(trial, state=_states().FAIL)
                told(Tried(trial.number, values, None, str(error)))
                failed += 1
                if failed >= 10 + wanted.trials:
                    raise ConfigError(f"{failed} trials failed, the last one: {error}") from error
                continue
            except BaseException:
                trials.tell(trial, state=_states().FAIL)
                if _complete(trials):
                    _written(study, trials, parts, wanted)
                raise
            if np.isnan(score):
                trials.tell(trial, state=_states().FAIL)
                raise ConfigError("none of the patients set aside has what the study is about: nothing can be scored")
            trials.tell(trial, score)
            told(Tried(trial.number, values, score))
            _written(study, trials, parts, wanted)
    return _written(study, trials, parts, wanted)


@contextmanager
def _alone(out: Path, study: Study) -> Iterator[None]:
    """One process a folder, and no model of a trial in it before or after, however an earlier process ended."""
    try:
        working = hold(out / WORKING, alone=True)
    except BlockingIOError:
        raise ConfigError(
            f"{out}: another process searches there; wait for its end, or give --out a folder of its own"
        ) from None
    with working:
        _forget(out, study)
        try:
            yield
        finally:
            _forget(out, study)


def _forget(out: Path, study: Study) -> None:
    for left in (out / TRIALS).glob(f"{study.study.name}-*"):
        shutil.rmtree(left, ignore_errors=True)


def _opened(wanted: Wanted, name: str) -> "optuna.Study":
    try:
        import optuna
    except ImportError:
        raise ConfigError("search needs Optuna, which is not installed; run: pip install 'secagg[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = (wanted.out / STORAGE).resolve()
    sampler = optuna.samplers.TPESampler(seed=wanted.seed)
    storage = f"sqlite:///{path}"
    try:
        found = optuna.create_study(
            storage=storage, study_name=name, load_if_exists=True, direction="maximize", sampler=sampler
        )
    except Exception as error:  # of SQLAlchemy, or of Optuna about it
        why = str(error).partition("\n")[0]
        raise ConfigError(f"{path}: cannot be used ({why}); mend it, or give --out another folder") from error
    for left in found.get_trials(states=(_states().RUNNING,)):  # of a process that was killed
        found.tell(left.number, state=_states().FAIL)
    if found.trials:
        found.sampler.reseed_rng()
    return found


def _states() -> Any:
    from optuna.trial import TrialState

    return TrialState


def _complete(trials: "optuna.Study") -> list[Any]:
    return list(trials.get_trials(deepcopy=False, states=(_states().COMPLETE,)))


def _proposed(trial: "optuna.Trial", field: str, given: Any) -> Any:
    if isinstance(given, list):
        return json.loads(trial.suggest_categorical(field, [json.dumps(value) for value in given]))
    low, high, step, log = given["low"], given["high"], given.get("step"), given.get("log", False)
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(field, low, high, step=step or 1, log=log)
    return trial.suggest_float(field, low, high, step=step, log=log)


def _with(study: Study, values: Mapping[str, Any], wanted: Wanted) -> Study:
    """The study of a trial: seeded where nobody pays, and never where somebody does."""
    changes: dict[str, dict[str, Any]] = {"run": {"evaluate_every": 10**6}}
    for field, value in values.items():
        section, _, name = field.partition(".")
        changes.setdefault(section, {})[name] = value
    charged = wanted.images == "charged"
    changes.setdefault("study", {})["seed"] = None if charged else wanted.seed
    if charged:
        changes.setdefault("privacy", {})["epsilon"] = wanted.epsilon
    return study.replace(**changes)


def _tried(study: Study, parts: Cohort, ledgers: Mapping[str, Ledger], wanted: Wanted) -> float:
    build_model(study)  # settings that do not fit are refused before any patient is charged
    if ledgers:
        run = f"search-{os.urandom(8).hex()}"  # another folder, or this one without its trials, repeats no charge
        cap = Cap("the budget of this search", "ask for fewer trials", wanted.budget, study.privacy.delta or 0.0)
        entries = {site: planned_entries(study, site, run) for site in ledgers}
        for site, ledger in ledgers.items():
            affordable_all(ledger, entries[site], cap)
        for site, ledger in ledgers.items():
            charge_all(ledger, [*entries[site], metrics_entry(study, site, run, 1)], cap)
        staying = {site: ledger.payers.staying for site, ledger in ledgers.items() if ledger.payers is not None}
        parts = {
            site: replace(data, train=tuple(case for case in data.train if case.patient in staying[site]))
            for site, data in parts.items()
        }
    with RunFolder.create(wanted.out / TRIALS, study) as folder:
        done = simulate(folder, parts, Options(plain=True, command="fedseg search"))
    values = joined([_judged(done, site, data, study) for site, data in parts.items()]).pooled()
    _forget(wanted.out, study)  # a model that is not chosen is nobody's
    means = [mean for mean in structure_means(values, study).values() if mean is not None]
    return float(np.mean(means)) if means else float("nan")


def _judged(run: Path, site: str, data: SiteData, study: Study) -> Scores:
    """Scores of a site's patients by the shared model, or by the site's own where it has one."""
    own = run / OWN_MODELS / f"{site}.safetensors"
    return evaluate(load_model(own if own.is_file() else run / "model.safetensors", study), {site: data}, study)


@contextmanager
def _ledgers(study: Study, cohort: Cohort, wanted: Wanted) -> Iterator[dict[str, Ledger]]:
    """The ledgers that the images have for life, where trials are charged."""
    with ExitStack() as closing:
        found: dict[str, Ledger] = {}
        if wanted.images == "charged" and wanted.data is not None:
            if not study.trust.claims_epsilon:
                raise ConfigError(
                    f"--charge with mechanism = '{study.privacy.mechanism}': nothing protects these patients, and no "
                    "budget holds it; use 'local' or 'distributed', or search on public images"
                )
            home = Home()
            states = {
                site: home.state_of(site, wanted.data / site, None, wanted.out / f"{site}-state")
                for site in study.site_ids
            }
            for site, state in states.items():
                state.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
                store = SqliteStore(state / MARKS, site)
                closing.callback(store.close)
                others = [other for name, other in states.items() if name != site]
                found[site] = data_set_ledger(state, store, None, cohort[site], others)
        yield found


def _written(study: Study, trials: "optuna.Study", parts: Cohort, wanted: Wanted) -> Path:
    if not _complete(trials):
        raise ConfigError("no trial succeeded; nothing was found")
    best = trials.best_trial
    values = {field: json.loads(value) if isinstance(value, str) else value for field, value in best.params.items()}
    changes: dict[str, dict[str, Any]] = {}
    for field, value in values.items():
        section, _, name = field.partition(".")
        changes.setdefault(section, {})[name] = value
    patients = sum(len({case.patient for case in data.test}) for data in parts.values())
    lines = [
        f"# Settings chosen by fedseg search, the best of {len(_complete(trials))} trials: score {best.value:.4f} on",
        f"# {patients} patients set aside from those in training; who is held out had no part in it. Chosen on",
        f"# {SAID[wanted.images]}.",
        *(f"# {field} = {json.dumps(value)}" for field, value in values.items()),
        "",
        study.replace(**changes).toml(),
    ]
    path = wanted.out / BEST
    write_whole(path, "\n".join(lines))
    return path
