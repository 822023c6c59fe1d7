"""`fedseg data`: a site's images before a study begins."""

from dataclasses import asdict
from typing import Annotated

import typer

from fedseg.cli.terminal import DataFolder, StudyFile, app
from fedseg.errors import ConfigError
from secagg.terminal import App, AsJson, plain, say, say_json

data_app = App("Look at a site's images before a study begins.")
app.add_typer(data_app, name="data")


@data_app.command("check")
def data_check(
    study: StudyFile,
    data: DataFolder = None,
    only: Annotated[str, typer.Option("--site", help="Check this site only; --data is then its own folder.")] = "",
    as_json: AsJson = False,
) -> None:
    """Check the images and label maps of a study.

    The exit status is 1 where something is wrong.
    """
    from fedseg.data.findings import check_site
    from fedseg.study import load_study

    loaded = load_study(study)
    if only and only not in loaded.site_ids:
        raise ConfigError(f"--site {only}: not a site of the study; use one of {', '.join(loaded.site_ids)}")
    folders = {only: data} if only else {site: data / site if data else None for site in loaded.site_ids}
    found = []
    for site, folder in folders.items():
        for finding in check_site(folder, site, loaded):
            found.append(finding)
            if not as_json:
                colour = {"error": "red", "warning": "yellow"}.get(finding.severity, "green")
                say(plain(finding.severity, colour), f" {finding.where}: {finding.message}")
    if as_json:
        say_json({"findings": [asdict(finding) for finding in found]})
    if any(finding.severity == "error" for finding in found):
        raise typer.Exit(1)
