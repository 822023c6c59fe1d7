"""`fedseg data`: a site's images before a study begins."""

from dataclasses import asdict

import typer

from fedseg.cli.terminal import DataFolder, StudyFile, app
from secagg.terminal import App, AsJson, plain, say, say_json

data_app = App("Look at a site's images before a study begins.")
app.add_typer(data_app, name="data")


@data_app.command("check")
def data_check(study: StudyFile, data: DataFolder = None, as_json: AsJson = False) -> None:
    """Check every image and label map that a study would train on; exit code 1 where training would stop."""
    from fedseg.data import check_site
    from fedseg.study import load_study

    loaded = load_study(study)
    found = []
    for site in loaded.site_ids:
        for finding in check_site(data / site if data else None, site, loaded):
            found.append(finding)
            if not as_json:
                colour = {"error": "red", "warning": "yellow"}.get(finding.severity, "green")
                say(plain(finding.severity, colour), f" {finding.where}: {finding.message}")
    if as_json:
        say_json({"findings": [asdict(finding) for finding in found]})
    if any(finding.severity == "error" for finding in found):
        raise typer.Exit(1)
