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

    A hospital that has only its own images adds --site. The exit status is 1 where something is wrong.
    """
    from fedseg.data.findings import Finding, check_between, check_site
    from fedseg.study import load_study

    loaded = load_study(study)
    if only and only not in loaded.site_ids:
        raise ConfigError(f"--site {only}: not a site of the study; use one of {', '.join(loaded.site_ids)}")
    folders = {only: data} if only else {site: data / site if data else None for site in loaded.site_ids}
    if data is not None and not only and data.is_dir() and not any((data / site).is_dir() for site in folders):
        sites = ", ".join(loaded.site_ids)
        raise ConfigError(f"{data}: has no subfolder {sites}; is it one hospital's own? Then add --site and its id")
    found: list[Finding] = []

    def tell(findings: list[Finding]) -> None:
        found.extend(findings)
        for finding in findings if not as_json else ():
            colour = {"error": "red", "warning": "yellow"}.get(finding.severity, "green")
            say(plain(finding.severity, colour), f" {finding.where}: {finding.message}")

    for site, folder in folders.items():
        tell(check_site(folder, site, loaded))
    tell(check_between(folders, loaded))
    wrong = any(finding.severity == "error" for finding in found)
    if as_json:
        say_json({"ok": not wrong, "findings": [asdict(finding) for finding in found]})
    if wrong:
        raise typer.Exit(1)
