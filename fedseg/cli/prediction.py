"""`fedseg predict`: a model on one image."""

from pathlib import Path
from typing import Annotated

import typer

from fedseg.cli.terminal import app
from secagg.terminal import say


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="model.safetensors of a run.", show_default=False)],
    image: Annotated[Path, typer.Argument(help="NIfTI image.", show_default=False)],
    output: Annotated[Path, typer.Argument(help="Label map to write (.nii.gz).", show_default=False)],
    study: Annotated[Path | None, typer.Option(help="Study, if the model file holds none.", show_default=False)] = None,
) -> None:
    """Segment one NIfTI image.

    Writes a label map on the image's own grid, and an overlay PNG beside it.
    """
    from fedseg.models import load_model, study_of
    from fedseg.predict import predict_file
    from fedseg.study import load_study
    from fedseg.tasks.table import task_of

    loaded = load_study(study) if study else study_of(model)
    shown = predict_file(load_model(model, loaded), image, output, loaded)
    overlay = task_of(loaded).write_picture(*shown, output)
    say(f"labels {output}")
    say(f"overlay {overlay}")
