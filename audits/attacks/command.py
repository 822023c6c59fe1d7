"""`python -m audits real`: the attacks on images that somebody brings."""

from pathlib import Path
from typing import Annotated

import typer

from audits.base import VERDICTS, worst
from secagg.terminal import COULD_NOT_RUN, errors, say

OUT = Path("build/real")


def on_real(
    folder: Annotated[Path, typer.Argument(help="A site's images, or a subfolder for each site of the study.")],
    study: Annotated[Path, typer.Option(help="Study that says how the images are read; dims = 2.")],
    size: Annotated[int, typer.Option(help="Pixels a side of the slices that are attacked.")] = 32,
    targets: Annotated[int, typer.Option(help="Patients whose picture is tried.")] = 8,
    pool: Annotated[int, typer.Option(help="Patients among whom one is told; a multiple of 16.")] = 64,
    models: Annotated[int, typer.Option(help="Models of each kind, for membership; even.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the draw of patients.")] = 0,
    to: Annotated[Path, typer.Option("--out", help="Folder of results. Its pictures show patients.")] = OUT,
) -> None:
    """Identification, gradient inversion and membership on real images of yours. The pictures stay in --out."""
    from audits import report
    from audits.attacks.real import audits_of
    from audits.running import run
    from fedseg.errors import ConfigError

    try:
        audits = audits_of(folder, study, size, targets, pool, models)
    except (ConfigError, ValueError) as error:
        say(f"audits real: {error}", console=errors)
        raise typer.Exit(COULD_NOT_RUN) from None
    records = []
    for record, _ in run(audits, "full", seed, to, True, lambda name, line: None):
        say(f"{record.verdict:9} {record.name} ({record.cpu_seconds:.0f} s of work): {record.says}")
        records.append(record)
    again = f"python -m audits real {folder} --study {study} --size {size} --targets {targets} --pool {pool} "
    report.write(records, "full", seed, to, again + f"--models {models} --seed {seed}")
    say(f"{to / report.PAGE} shows patients: keep it where their images are.")
    raise typer.Exit(VERDICTS.index(worst(record.verdict for record in records)))
