"""`fedseg predict`: a model on one image, or on a folder of them: label maps, or a table of classes."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedseg.cli.terminal import app
from fedseg.errors import CaseError
from secagg.terminal import errors, plain, say

if TYPE_CHECKING:
    from fedseg.study import Study


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="model.safetensors of a run.", show_default=False)],
    image: Annotated[
        Path,
        typer.Argument(help="NIfTI image or picture, or a folder: of them, or a DICOM series.", show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Argument(
            help="Label map to write (.nii.gz, or .dcm for DICOM SEG), or a folder; of classes a table (.csv, .json).",
            show_default=False,
        ),
    ],
    study: Annotated[Path | None, typer.Option(help="Study, if the model file holds none.", show_default=False)] = None,
) -> None:
    """Segment images, or classify pictures, with a model.

    Writes label maps on the images' own grids, and an overlay PNG beside each. A model of classes writes a table with
    their probabilities for each picture. An image is never overwritten. The exit status is 1 where one of a folder
    could not be used.
    """
    from fedseg.models import load_model, study_of
    from fedseg.study import load_study

    loaded = study_of(model, load_study(study) if study else None)
    if write_answers_of(lambda: load_model(model, loaded), image, output, loaded):
        raise typer.Exit(1)


def write_answers_of(network: Callable[[], Any], image: Path, output: Path, study: "Study") -> int:
    """Write what a network says of an image or a folder of them.

    Args:
        network: gives it, once the names of files are found to be right.
        image: as `predict` takes it.
        output: as `predict` takes it.
        study: what the network was trained with.

    Returns:
        How many images of a folder could not be used.

    Raises:
        ConfigError, CaseError: as `fedseg.predict` and `fedseg.answers`.
    """
    if study.study.task == "classification":
        return _classify(network, image, output, study)
    from fedseg.predict import asked_of, predict_asked
    from fedseg.tasks.table import task_of

    asked = asked_of(image, output, study)
    model, task, failed = network(), task_of(study), 0
    for number, one in enumerate(asked, 1):
        progress = f"{number}/{len(asked)} " if image.is_dir() else ""
        try:
            overlay = task.write_picture(*predict_asked(model, one, study), one.output)
        except CaseError as error:
            if not progress:
                raise
            failed += 1
            say(plain(f"{progress}error ", "red", console=errors), str(error), console=errors)
            continue
        say(f"{progress}labels {one.output}")
        say(f"{progress}overlay {overlay}")
    return failed


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="model.safetensors of a run.", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="The bundle, a folder to be made.", show_default=False)],
) -> None:
    """Write a model as a MONAI bundle.

    It segments by `python -m monai.bundle run --config_file configs/inference.json` where there is no fedseg.
    """
    from fedseg.export import export as bundle

    say(f"bundle {bundle(model, folder)}")


def _classify(network: Callable[[], Any], source: Path, output: Path, study: "Study") -> int:
    from fedseg.answers import Answer, answers, pictures_in, write_answers

    pictures, found, failed = pictures_in(source, output), list[Answer](), 0
    for answer in answers(network(), pictures, source, study):
        if isinstance(answer, Answer):
            found.append(answer)
            continue
        failed += 1
        say(plain("error ", "red", console=errors), str(answer), console=errors)
    if found:
        write_answers(found, output, study)
        say(f"classes of {len(found)} of {len(pictures)} pictures: {output}")
    return failed
