"""Dice of one training, on one processor: `python tests/benchmarks/models.py STUDY DATA WHO [SEED]`.

WHO is `pooled` (all sites' patients in one place), `federated` (a plain sum of updates, bit for bit what secure
aggregation gives), or a site's id (that site alone). Each has the study's rounds and local steps. Dice is on the files'
own grids, mean over held-out patients. With an epsilon the noise is the study's, and seeded. With `--choosing` the
held-out patients are not looked at: a third of the training patients are set aside and scored in their place.
`--set=SECTION.FIELD=VALUE` replaces a field. One JSON line a run goes to standard output; `paired.py` compares lines.
"""

import json
import sys
import time
import tomllib
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fedseg.aggregate import PlainSum
from fedseg.course import Course, Own
from fedseg.data.cases import Case, SiteData, held_out
from fedseg.data.loading import load_cohort, load_site
from fedseg.evaluation import assess, joined, mean_interval, overall_mean, structure_means
from fedseg.parties import rounding_of
from fedseg.start import starting_model
from fedseg.study import Study, load_study
from fedseg.train import local_steps
from fedseg.update import Update, adopt, flatten
from secagg.prg import Stream

CHOOSING = 0.33
TOGETHER = "pooled", "federated"


def roles(site: str, data: SiteData, choosing: bool) -> SiteData:
    """The site's patients; while settings are chosen, some of its training patients in place of the held-out ones."""
    if not choosing:
        return data
    aside = [held_out(f"{site}-choosing", case.patient, CHOOSING) for case in data.train]
    both = list(zip(data.train, aside, strict=True))
    return replace(data, train=tuple(c for c, out in both if not out), test=tuple(c for c, out in both if out))


def everybody(cohort: dict[str, SiteData]) -> SiteData:
    """All sites' patients as one site's."""

    def named(case: Case) -> Case:
        return replace(case, patient=f"{case.site} {case.patient}")

    train = tuple(named(case) for data in cohort.values() for case in data.train)
    return SiteData("pooled", train, ())


def trained(study: Study, cohort: dict[str, SiteData], who: str) -> dict[str, torch.nn.Module]:
    """The model after all rounds by site: one for all, but for `[federation] personal`."""
    at = {"pooled": everybody(cohort)} if who == "pooled" else cohort if who == "federated" else {who: cohort[who]}
    model = starting_model(study)
    course = Course(study, model)
    policy, state = course.policy(), course.opened(model)
    plain = PlainSum(policy, rounding_of(study.study.seed))
    own = {site: Own(study, model) for site in at}
    for number in range(1, study.study.rounds + 1):

        def update(site: str, number: int = number) -> Update:
            taken = local_steps(own[site].model(model), at[site], study, site=site, round_number=number)
            own[site].then(number, taken.weights)
            own[site].settle(included=True)
            return taken.update(site, "not charged", _nothing)

        if who == "federated":
            summed = plain.round(b"", at, update, _nobody, {})
            total, included = summed.total, summed.ended.included
        else:
            included = study.site_ids[:1]
            total = policy.weight(included[0]) * update(next(iter(at))).vector.astype(np.float64)
        state = course.following(state, total, included, policy)
        adopt(model, state)
    given = course.given_out(model, state)
    return {site: own[site].model(given) if site in own else given for site in cohort}


def _nothing(purpose: str) -> bytes:
    return bytes(32)


def _nobody(event: object) -> None:
    pass


def main(*arguments: str) -> None:
    """One run; see the module."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sets = [one.removeprefix("--set=") for one in arguments if one.startswith("--set=")]
    path, folder, who, *seed = [one for one in arguments if not one.startswith("--")]
    changes: dict[str, dict[str, object]] = {}
    for one in (f"study.seed={seed[0] if seed else 1}", *sets):
        field, _, value = one.partition("=")
        section, _, name = field.partition(".")
        changes.setdefault(section, {})[name] = tomllib.loads(f"value = {value}")["value"]
    study = load_study(Path(path)).replace(**changes)
    choosing = "--choosing" in arguments
    loaded = load_cohort(Path(folder), study) if (Path(folder) / study.site_ids[0]).is_dir() else shared(folder, study)
    cohort = {site: roles(site, data, choosing) for site, data in loaded.items()}
    began = time.process_time()
    models = trained(study, cohort, who)
    trained_seconds = time.process_time() - began
    scores = joined([assess(models[site], {site: data}, study) for site, data in cohort.items()])
    found = mean_interval(scores.pooled())
    print(
        json.dumps(
            {
                "study": study.study.name,
                "who": who,
                "seed": study.study.seed,
                "set": sets,
                "scored": "set aside from training" if choosing else "held out",
                "dice": None if found is None else found.model_dump(),
                "structures": structure_means(scores.pooled(), study),
                "patients": {
                    f"{site} {patient}": overall_mean(row[None])
                    for site, values in scores.values.items()
                    for patient, row in zip(scores.patients[site], values, strict=True)
                },
                "sites": {site: overall_mean(values) for site, values in scores.values.items()},
                "trained patients": sum(
                    len(data.patients) for site, data in cohort.items() if who in (site, *TOGETHER)
                ),
                "parameters": len(flatten(next(iter(models.values())))),
                "cpu_seconds": round(trained_seconds),
                "scoring_cpu_seconds": round(time.process_time() - began - trained_seconds),
            }
        ),
        flush=True,
    )


def shared(folder: str, study: Study) -> dict[str, SiteData]:
    """One folder's training patients over the study's sites at random, always alike; held-out ones at the first."""
    data = load_site(Path(folder), study.site_ids[0], study)
    order = Stream.seeded(1, "share").permutation(len(data.train))
    sites = len(study.site_ids)
    return {
        site: SiteData(site, tuple(data.train[at] for at in order[number::sites]), () if number else data.test)
        for number, site in enumerate(study.site_ids)
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
