"""Dice without privacy, of one processor: `python tests/benchmarks/models.py STUDY DATA WHO [SEED]`.

WHO is `pooled` (all sites' patients in one place), `federated` (a plain mean of updates, bit for bit what secure
aggregation gives), or a site's id (that site alone). Each has the study's rounds and local steps. Dice is on the files'
own grids, mean over held-out patients. With `--choosing` the held-out patients are not looked at: a third of the
training patients are set aside and scored in their place. `--set=SECTION.FIELD=VALUE` replaces a field. One JSON line a
run goes to standard output.
"""

import copy
import json
import sys
import time
import tomllib
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from fedseg.course import Course
from fedseg.data.cases import Case, SiteData, held_out
from fedseg.data.loading import load_cohort, load_site
from fedseg.evaluation import assess, mean_interval, overall_mean, structure_means
from fedseg.start import starting_model
from fedseg.study import Study, load_study
from fedseg.train import local_steps
from fedseg.update import adopt, flatten
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


def trained(study: Study, cohort: dict[str, SiteData], who: str) -> torch.nn.Module:
    """The model after all rounds."""
    at = {"pooled": everybody(cohort)} if who == "pooled" else cohort if who == "federated" else {who: cohort[who]}
    model = starting_model(study)
    course = Course(study, model)
    policy, state = course.policy(), course.opened(model)
    for number in range(1, study.study.rounds + 1):
        moved = []
        for site, data in at.items():
            steps = local_steps(copy.deepcopy(model), data, study, site=site, round_number=number)
            share = policy.weight(site) if who == "federated" else 1.0
            moved.append(share * steps.update(site, "", _nothing).vector)
        weight = sum(map(policy.weight, at)) if who == "federated" else 1.0
        state = state + (sum(moved) / weight).astype("float32")
        adopt(model, state)
    return model


def _nothing(purpose: str) -> bytes:
    return bytes(32)


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
    model = trained(study, cohort, who)
    trained_seconds = time.process_time() - began
    scores = assess(model, cohort, study)
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
                "sites": {site: overall_mean(values) for site, values in scores.values.items()},
                "trained patients": sum(
                    len(data.patients) for site, data in cohort.items() if who in (site, *TOGETHER)
                ),
                "parameters": len(flatten(model)),
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
