"""The attacks that end in a picture or in a name, on a folder of real images: what they come to on patients.

The audits themselves run on made images, which anybody can have. Here are the same functions, the same networks, the
same rounds of the product, on one slice of each real patient. What the attacks draw shows patients: it lies in the
folder of results, which is not committed, and goes nowhere else.
"""

from pathlib import Path

from audits.attacks import identification, inversion, membership
from audits.attacks.common import Images, one_slice
from audits.base import Audit, Unable
from fedseg.data.cases import Case
from fedseg.data.loading import load_site
from fedseg.study import Study, load_study
from secagg.prg import Stream

EPSILON = 2.0
"""Of the inversion under privacy: its bound is low enough for few patients to show that it was passed."""


def images_in(folder: Path, like: Study) -> Images:
    """The patients of a folder: one site's, or a subfolder a site.

    Args:
        folder: as `[data] layout` of the study has it.
        like: says how images are read: structures, layout, channels, spacing.
    """
    left_out = {"size", "spacing", "statistics", "mean", "sd"}  # every slice is on one grid, of the attack's size
    structures, data = like.study.structures, like.data.model_dump(exclude=left_out)
    folders = [folder / site for site in like.site_ids if (folder / site).is_dir()] or [folder]

    def adapted(study: Study) -> Study:
        """The attack's study, on these images, of whom nobody is held out."""
        return study.replace(study={"structures": list(structures)}, data={**data, "holdout": 0.0})

    def patients(study: Study, count: int, seed: int) -> list[Case]:
        """So many patients in a drawn order, each with its slice that shows most structure."""
        site = study.site_ids[0]
        everybody = {(place, case.patient): case for place in folders for case in load_site(place, site, study).train}
        cases = list(everybody.values())
        if len(cases) < count:
            raise Unable(f"{folder} has {len(cases)} patients, and the attack needs {count}; lower --pool")
        return [one_slice(cases[number]) for number in Stream.seeded(seed, "real").permutation(len(cases))[:count]]

    return Images(f"real patients: {folder.name}, read as {like.study.name} says", like.data.layout, adapted, patients)


def audits_of(folder: Path, study: Path, size: int, targets: int, pool: int, models: int) -> list[Audit]:
    """The attacks on a folder's patients.

    Args:
        folder: see `images_in`.
        study: file of the study that says how they are read.
        size: pixels a side.
        targets: patients whose picture is tried.
        pool: patients among whom one is told, and who are dealt to the models.
        models: of each kind.

    Raises:
        ConfigError: the study cannot be read, or does not fit.
        ValueError: it is of volumes.
    """
    like = load_study(study)
    if like.data.dims != 2:
        raise ValueError(f"{study}: the attacks are on slices; give a study with [data] dims = 2")
    images = images_in(folder, like)
    return [
        Audit(
            "attacks.identification",
            f"Which candidate is in an update: {images.words}",
            (),
            {"full": 0},
            lambda task: identification.attacked(
                task, candidates=pool, epsilons=(2.0,), passes=4, size=size, images=images
            ),
        ),
        Audit(
            "attacks.inversion",
            f"Pictures from gradients: {images.words}",
            (),
            {"full": 0},
            lambda task: inversion.attacked(
                task,
                targets=targets,
                private=targets,
                epsilon=EPSILON,
                iterations=150,
                candidates=pool,
                size=size,
                images=images,
            ),
        ),
        Audit(
            "attacks.membership",
            f"Who was in a training: {images.words}",
            (),
            {"full": 0},
            lambda task: membership.attacked(
                task, models=models, pool=pool, steps=1000, rounds=8, size=size, images=images
            ),
        ),
    ]
