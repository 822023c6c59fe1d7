"""`fedseg predict`: a model on one image, or on a folder of them."""

from pathlib import Path
from typing import Annotated

import typer

from fedseg.cli.terminal import app
from fedseg.errors import CaseError
from secagg.terminal import errors, plain, say


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="model.safetensors of a run.", show_default=False)],
    image: Annotated[
        Path, typer.Argument(help="NIfTI image, or a folder: of images, or a DICOM series.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Argument(help="Label map to write (.nii.gz, or .dcm for DICOM SEG), or a folder.", show_default=False),
    ],
    study: Annotated[Path | None, typer.Option(help="Study, if the model file holds none.", show_default=False)] = None,
) -> None:
    """Segment images, in NIfTI or DICOM.

    Writes label maps on the images' own grids, and an overlay PNG beside each. An image is never overwritten. The exit
    status is 1 where an image of a folder could not be segmented.
    """
    from fedseg.models import load_model, study_of
    from fedseg.predict import asked_of, predict_asked
    from fedseg.study import load_study
    from fedseg.tasks.table import task_of

    loaded = study_of(model, load_study(study) if study else None)
    network, asked = load_model(model, loaded), asked_of(image, output, loaded)
    task, failed = task_of(loaded), 0
    for number, one in enumerate(asked, 1):
        progress = f"{number}/{len(asked)} " if image.is_dir() else ""
        try:
            overlay = task.write_picture(*predict_asked(network, one, loaded), one.output)
        except CaseError as error:
            if not progress:
                raise
            failed += 1
            say(plain(f"{progress}error ", "red", console=errors), str(error), console=errors)
            continue
        say(f"{progress}labels {one.output}")
        say(f"{progress}overlay {overlay}")
    if failed:
        raise typer.Exit(1)
