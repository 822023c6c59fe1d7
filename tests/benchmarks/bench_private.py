"""What privacy costs a step: a private step, a plain one, and one by Opacus' hooks, in turns, on made patients.

    python tests/benchmarks/bench_private.py [--reps 15] [--patients 8]

The step is `fedseg.train.local_steps` with mechanism "local" and with "none": all patients' slices drawn, forwards and
backwards, clipped and noised or not, and the update of the weights. Opacus' `GradSampleModule` takes the same slices of
all patients at once, keeps a gradient of each slice, adds them up by patient, clips and adds Gaussian noise in floating
point. Median CPU time of one core, and ratios, which are what may be compared between machines.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from opacus import GradSampleModule

from fedseg.data.cases import SiteData
from fedseg.data.phantoms.table import phantom_of
from fedseg.models import build_model
from fedseg.pretraining import public_cases
from fedseg.study import Study, load_study
from fedseg.tasks.table import batch_of, task_of
from fedseg.train import local_steps
from secagg.prg import Stream

STUDIES = Path(__file__).parents[2] / "studies"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=15, help="steps of each kind")
    parser.add_argument("--patients", type=int, default=8)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # hooks on a whole module, which is what Opacus does
    torch.set_num_threads(1)
    print("| step | CPU ms, median | least | times the plain one |\n|---|---|---|---|")
    for name in ("hippocampus", "lgg"):
        study = load_study(STUDIES / f"{name}.toml").replace(study={"local_steps": 1, "seed": 1})
        taken = ways(study, asked.patients)
        spent: dict[str, list[float]] = {way: [] for way in taken}
        for turn in range(asked.reps + 1):  # the first one warms up
            for way, step in taken.items():
                began = time.process_time()
                step()
                if turn:
                    spent[way].append(1e3 * (time.process_time() - began))
        plain = statistics.median(spent["plain"])
        for way, times in spent.items():
            middle, what = statistics.median(times), f"{name}, {asked.patients} patients: {way}"
            print(f"| {what} | {middle:.0f} | {min(times):.0f} | {middle / plain:.2f} |")


def ways(study: Study, patients: int) -> dict[str, Callable[[], object]]:
    """A step of each kind, by name."""
    cases = public_cases(phantom_of(study, "bench", "choose another study"), study, "bench", patients)
    data, model = SiteData("site", tuple(cases), ()), build_model(study)
    unprotected = study.replace(privacy={"mechanism": "none"}, secagg={"clip_range": 2.0})
    return {
        "plain": lambda: local_steps(model, data, unprotected, site=study.site_ids[0], round_number=1),
        "private": lambda: local_steps(model, data, study, site=study.site_ids[0], round_number=1),
        "Opacus' hooks": hooks(study, data),
    }


def hooks(study: Study, data: SiteData) -> Callable[[], object]:
    """A step by Opacus, with noise as its optimiser adds it."""
    model, task, norm = GradSampleModule(build_model(study)), task_of(study), study.privacy.clip_norm
    optimiser = torch.optim.SGD(model.parameters(), lr=study.study.lr, momentum=0.9)

    def step() -> None:
        parts = [batch_of(case, study, Stream.seeded(1, case.patient)) for case in data.train]
        images, targets = (torch.cat(those) for those in zip(*parts, strict=True))
        outputs, lengths = model(images), [len(those) for those, _ in parts]
        sum(task.loss(*one) for one in zip(outputs.split(1), targets.split(1), strict=True)).backward()
        of_patients = [
            torch.cat([own.sum(0).flatten() for own in split])
            for split in zip(*(p.grad_sample.split(lengths) for p in model.parameters()), strict=True)
        ]
        clipped = [own * min(1.0, norm / float(own.norm() + 1e-6)) for own in of_patients]
        total = torch.stack(clipped).sum(0)
        total = (total + norm * torch.randn_like(total)) / study.privacy.denominator
        at = 0
        for parameter in model.parameters():
            parameter.grad = total[at : at + parameter.numel()].view_as(parameter)
            parameter.grad_sample, at = None, at + parameter.numel()
        optimiser.step()

    return step


if __name__ == "__main__":
    main()
