"""MLflow: a complete run with its settings, figures by round, report and model, sent where a person says.

It leaves the machine, so only what may leave it goes: settings, and the shared model. Figures of held-out patients, and
the report that shows them, go from a coordinator (which has what sites shared), from made patients, and from a site
whose study says `share_metrics`. Never: a patient's picture, the log, a ledger, a site's own model.
"""

from pathlib import Path
from typing import Any

from fedseg.errors import ConfigError
from fedseg.report.folder import Run, read_run
from fedseg.study import Study, load_study


def track(run: Path, to: str, experiment: str) -> str:
    """Send a complete run.

    Args:
        run: its folder, with its report.
        to: an MLflow tracking URI, such as a folder's or a server's.
        experiment: under which name; made where there is none.

    Returns:
        What MLflow calls the run.

    Raises:
        ConfigError: mlflow is not installed or refuses the address, or the run folder is not whole.
    """
    try:
        import mlflow
    except ImportError:
        raise ConfigError("mlflow is not installed; add it with pip install 'secagg[mlflow]'") from None
    found, study = read_run(run), load_study(run / "study.toml")
    try:
        mlflow.set_tracking_uri(to)
        mlflow.set_experiment(experiment)
        with mlflow.start_run(run_name=run.name) as active:
            _send(mlflow, run, found, study)
            return str(active.info.run_id)
    except Exception as error:  # of MLflow, of a server, of a database, on the way: all of them take no more
        why = str(error).partition("\n")[0]
        raise ConfigError(f"--to {to}: MLflow does not take the run ({why}); mend that, or give another") from error


def _send(mlflow: Any, run: Path, found: Run, study: Study) -> None:
    mlflow.log_params(_settings(study))
    mlflow.set_tags({"fedseg.study_hash": study.hash().hex(), "fedseg.trust": study.trust.sentence})
    for step, figures in _figures(found, study):
        mlflow.log_metrics(figures, step=step)
    for name in ["study.toml", "model.safetensors", *(["report.html"] if shows_figures(found, study) else [])]:
        mlflow.log_artifact(str(run / name))


def shows_figures(run: Run, study: Study) -> bool:
    """Whether figures of held-out patients may leave this machine."""
    made, site = study.data.layout == "phantom", run.study.party not in ("", "coordinator")
    return made or study.report.share_metrics or (not site and bool(run.study.party))


def _settings(study: Study) -> dict[str, Any]:
    content = study.model_dump(mode="json", exclude={"sites", "run"})
    flat = {f"{section}.{name}": value for section, fields in content.items() for name, value in fields.items()}
    return {**flat, "sites": len(study.site_ids)}


def _figures(run: Run, study: Study) -> list[tuple[int, dict[str, float]]]:
    """By round: what was spent, and how good the model was, where that may leave."""
    figures, shown = list[tuple[int, dict[str, float]]](), shows_figures(run, study)
    measure = run.metrics.dice.measure
    for entry in run.metrics.history:
        found = {"epsilon": entry.epsilon}
        if shown:
            found |= {measure: entry.mean, **{f"{name} {measure}": value for name, value in entry.dice.items()}}
        figures.append((entry.round, {_plain(name): value for name, value in found.items() if value is not None}))
    return figures


def _plain(name: str) -> str:
    """A name that MLflow takes."""
    return "".join(letter if (letter.isalnum() and letter.isascii()) or letter in "-_./ " else "_" for letter in name)
