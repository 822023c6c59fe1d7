"""What is compared: rows are data. A new one is one more line of `ROWS`.

All rows of a comparison have the same images, the same held-out patients and the same number of gradient steps.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from fedseg.data.cases import SiteData
from fedseg.errors import ConfigError
from fedseg.mechanisms.table import MECHANISMS
from fedseg.simulate import Options
from fedseg.study import Study

Cohort: TypeAlias = Mapping[str, SiteData]
NEVER = 10**6
"""Rounds between two scores: only the last model of a cell is judged."""
CLIP_RANGE = 1.0
"""Bound of an update's values where the study, one of 'distributed', needs none."""


@dataclass(frozen=True)
class Row:
    """One way to train.

    Attributes:
        name: as `--rows` has it.
        title: as tables have it; `{site}` is the one that trains alone.
        who: whose patients train: nobody's, everybody's in one place, each site's by itself, or the federation's.
        mechanism: as `[privacy] mechanism`; one that claims an epsilon is trained at every epsilon asked for.
        changes: further fields of the study, by section.
        twin: the row that is the same without noise.
        trust: who has to be trusted, where it is not what the mechanism says.
    """

    name: str
    title: str
    who: Literal["nobody", "everybody", "each", "federation"]
    mechanism: str = "none"
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    twin: str = ""
    trust: str = ""

    @property
    def private(self) -> bool:
        """Whether an epsilon belongs to it."""
        return MECHANISMS[self.mechanism].trust.claims_epsilon


CENTRAL = "one party that holds all patients' images is trusted: it clips, adds up and adds the noise"

ROWS = (
    Row("zero-shot", "the start, before any training", "nobody"),
    Row("pooled", "all patients in one place, no privacy", "everybody"),
    Row("alone", "{site} alone, no privacy", "each"),
    Row("federated", "federated, no privacy", "federation"),
    Row("scratch", "federated from scratch, no privacy", "federation", changes={"model": {"start": "scratch"}}),
    Row("twin-local", "federated, clipped, no noise", "federation", "clipped"),
    Row("local", "federated, local", "federation", "local", twin="twin-local"),
    Row("twin-central", "in one place, clipped, no noise", "everybody", "clipped"),
    Row("distributed", "federated, distributed", "federation", "distributed", twin="twin-central"),
    Row("svt", "federated, svt", "federation", "svt"),
    Row("central", "in one place, central", "everybody", "local", twin="twin-central", trust=CENTRAL),
)
"""In the order of the table. Training from fresh weights is the same with and without a start to compare it with."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One training.

    Attributes:
        row: which way.
        study: everything that is trained by.
        seed: of draws, slices and noise.
        epsilon: of the whole training, per patient; None where none is claimed.
        site: the one that trains alone.
    """

    row: Row
    study: Study = field(repr=False)
    seed: int
    epsilon: float | None = None
    site: str = ""

    @property
    def name(self) -> str:
        """What it is called, without its seed: a line of the table."""
        at = "" if self.epsilon is None else f" {self.epsilon:g}"
        return f"{self.row.name}{at}{' ' if self.site else ''}{self.site}"

    @property
    def title(self) -> str:
        """The same for people."""
        at = "" if self.epsilon is None else f", epsilon {self.epsilon:g}"
        return f"{self.row.title.format(site=self.site)}{at}"

    @property
    def trust(self) -> str:
        """Who has to be trusted, as one sentence; empty where nothing is claimed."""
        return (self.row.trust or self.study.trust.sentence) if self.row.private else ""

    def options(self, command: str) -> Options:
        """How it is simulated."""
        alone = {"each": self.site, "everybody": self.study.site_ids[0]}.get(self.row.who, "")
        return Options(plain=not alone, alone=alone, command=command)

    def cohort(self, cohort: Cohort) -> Cohort:
        """The patients as this training sees them; who is held out is held out in all."""
        if self.row.who != "everybody":
            return cohort
        everybody = tuple(
            replace(case, patient=f"{site}/{case.patient}") for site, data in cohort.items() for case in data.train
        )
        first = self.study.site_ids[0]
        return {site: replace(data, train=everybody if site == first else ()) for site, data in cohort.items()}


def chosen(names: Sequence[str]) -> list[Row]:
    """Rows by their names, with the start and the noiseless twins that they are held against, in the table's order.

    Raises:
        ConfigError: there is no such row.
    """
    known = {row.name: row for row in ROWS}
    for name in names:
        if name not in known:
            raise ConfigError(f"--rows {name}: no such row; use of {', '.join(known)}")
    if not names:
        return list(ROWS)
    wanted = {*names, "zero-shot", *(known[name].twin for name in names)}
    return [row for row in ROWS if row.name in wanted]


def cells(
    base: Study, own: Mapping[str, Study], rows: Sequence[Row], epsilons: Sequence[float], seeds: int
) -> Iterator[Cell]:
    """Every training of a comparison.

    Args:
        base: the study.
        own: studies whose settings a row has in place of the base's, by row; see `fitting`.
        rows: which.
        epsilons: of every private row.
        seeds: how many, from 1.

    Raises:
        ConfigError: a row cannot be trained by its study: names the row and the field.
    """
    for row in rows:
        if row.name == "scratch" and base.model.start == "scratch":
            continue  # "federated" is it
        study = _of_row(row, base, own)
        for epsilon in epsilons if row.private else (None,):
            for site in base.site_ids if row.who == "each" else ("",):
                for seed in range(1, 2 if row.who == "nobody" else seeds + 1):
                    yield Cell(row, _changed(row, study, epsilon, seed), seed, epsilon, site)


def trainable(rows: Sequence[Row], base: Study, own: Mapping[str, Study]) -> tuple[list[Row], list[str]]:
    """Rows that the studies have settings for, and why the others are left out: a plain study names no clip norm."""
    kept, said = [], []
    for row in rows:
        try:
            list(cells(base, own, [row], [base.privacy.epsilon or 1.0], 1))
            kept.append(row)
        except ConfigError as error:
            said.append(str(error))
    return kept, said


def fitting(row: str, own: Study, base: Study) -> Study:
    """A row's own study, which may differ in how it trains and in nothing that is compared.

    Raises:
        ConfigError: other images, structures or sites than the base's.
    """
    for what, one, other in (
        ("[data]", own.data, base.data),
        ("[study] structures", tuple(own.names), tuple(base.names)),
        ("[[sites]]", own.site_ids, base.site_ids),
    ):
        if one != other:
            raise ConfigError(f"--for {row}: {what} is not that of the study to be compared; make them the same")
    return own


def _of_row(row: Row, base: Study, own: Mapping[str, Study]) -> Study:
    """A twin trains as the first private row does that it belongs to."""
    names = [row.name, *(other.name for other in ROWS if other.twin == row.name)]
    return next((own[name] for name in names if name in own), base)


def _changed(row: Row, study: Study, epsilon: float | None, seed: int) -> Study:
    """The study of one training: the same number of steps in the form that the row's mechanism has."""
    asked = int(study.asked is not None)
    trained = study.study.rounds - asked
    steps, denominator = trained * study.study.local_steps, study.privacy.denominator
    rounds = trained, study.study.local_steps
    if row.who == "everybody":
        rounds, denominator = (1, steps), denominator * len(study.site_ids)
    elif row.mechanism == "distributed":
        rounds = steps, 1
    shared = row.mechanism == "distributed"
    changes: dict[str, dict[str, Any]] = {
        "study": {"rounds": asked + rounds[0], "local_steps": rounds[1], "spare_rounds": 0, "seed": seed},
        "privacy": {"mechanism": row.mechanism, "denominator": denominator},
        "secagg": {} if shared or study.secagg.clip_range else {"clip_range": CLIP_RANGE},
        "run": {"evaluate_every": NEVER},
    }
    if not shared:
        changes["study"]["optimizer"], changes["privacy"]["excess_noise"] = "sgd", "stays"
    if row.who != "federation":
        changes["federation"] = {"participation": 0}  # who trains alone is in every round
    if epsilon is not None:
        changes["privacy"]["epsilon"] = epsilon
    for section, fields in row.changes.items():
        changes[section] = {**changes.get(section, {}), **fields}
    try:
        return study.replace(**changes)
    except ConfigError as error:
        raise ConfigError(f"row {row.name}: {str(error).removeprefix('study: ')}") from error
