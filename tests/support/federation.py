"""Real coordinators and sites over real TLS in one process, which a test can watch, kill and operate."""

import asyncio
import shlex
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from fedseg.cli import app
from fedseg.coordinator import Coordinator
from fedseg.coordinator import Options as CoordinatorOptions
from fedseg.credentials import make_credentials
from fedseg.data.loading import load_site
from fedseg.runfolder import RunFolder
from fedseg.site import Options as SiteOptions
from fedseg.site import Site
from fedseg.study import Study
from secagg.enrolment.office import Office
from secagg.enrolment.site import accept

COORDINATOR = "coordinator"
ASKED = "has to run beside this process: "


class Federation:
    """One study; an async context manager that ends everything at its end.

    Args:
        study: everybody's.
        folder: credentials and site states lie here, so that a second federation in it has the same parties.
        run: name of the training run.
        kind: of the coordinator.
        on: called with everybody's events, first with who it is.
    """

    def __init__(
        self,
        study: Study,
        folder: Path,
        *,
        run: str = "run",
        kind: type[Coordinator] = Coordinator,
        on: Callable[[str, dict], object] = lambda who, event: None,
    ) -> None:
        self.study, self.folder, self.run_name, self.kind, self.on = study, folder, run, kind, on
        self.credentials = folder / f"credentials-{run}"
        self.events: dict[str, list[dict]] = {}
        self.tasks: dict[str, asyncio.Task[Path]] = {}
        self.port = 0
        self._answered: set[str] = set()

    async def __aenter__(self) -> "Federation":
        self._loop = asyncio.get_running_loop()
        self.folder.mkdir(exist_ok=True)
        (self.folder / f"{self.run_name}.toml").write_text(self.study.toml(), encoding="utf-8")
        first = self.folder / "credentials"
        if not first.is_dir():
            make_credentials(first, self.study, "first")
        if not self.credentials.is_dir():  # the same parties
            shutil.copytree(first, self.credentials)
            Office(self.credentials).publish(self.run_name)
            for site in self.study.site_ids:
                accept(self.credentials / "federation.toml", self.credentials, site)
        options = CoordinatorOptions(
            credentials=self.credentials, patience=20, rejoin_seconds=2, step_seconds=5, grace=1.0
        )
        folder = RunFolder.create(self.folder / COORDINATOR, self.study, self._listener(COORDINATOR))
        self.coordinator = self.kind(folder, options)
        self.tasks[COORDINATOR] = asyncio.create_task(self.coordinator.run())
        await self.until(lambda: self.of(COORDINATOR, "listening"))
        self.port = self.of(COORDINATOR, "listening")[0]["port"]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)

    def start(self, *names: str, study: Study | None = None) -> None:
        """Start sites, or start them again, maybe with another study."""
        for name in names or self.study.site_ids:
            given = ["--state", str(self.folder / f"{name}-state"), "--credentials", str(self.credentials)]
            address = f"127.0.0.1:{self.port}"
            command = [
                "fedseg",
                "site",
                str(self.folder / f"{self.run_name}.toml"),
                name,
                "--coordinator",
                address,
                *given,
            ]
            options = SiteOptions(
                site=name,
                address=address,
                credentials=self.credentials,
                state=self.folder / f"{name}-state",
                patience=10,
                command=shlex.join(command),
            )
            own = study or self.study
            run = RunFolder.create(self.folder / name, own, self._listener(name))
            site = Site(run, load_site(None, name, own), options)
            self.tasks[name] = asyncio.create_task(site.run())

    def kill(self, *names: str) -> None:
        """End sites before their next step, as SIGKILL would."""
        for name in names:
            self.tasks[name].cancel()

    def _listener(self, who: str) -> Callable[[dict], None]:
        found = self.events.setdefault(who, [])

        def listen(event) -> None:
            found.append(event.model_dump())
            if threading.current_thread() is threading.main_thread():
                self.on(who, event.model_dump())
            else:  # a record that is written in a thread
                self._loop.call_soon_threadsafe(self.on, who, event.model_dump())

        return listen

    def of(self, who: str, kind: str) -> list[dict]:
        """Events of one party."""
        return [event for event in self.events[who] if event["kind"] == kind]

    def said(self, who: str) -> str:
        """All that a party said to its operator."""
        return "\n".join(event.get("text", "") or event.get("reason", "") for event in self.events[who])

    async def until(self, condition: Callable[[], object], seconds: float = 120) -> None:
        """Wait until a condition holds; fails at once where anybody ended with an error."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    for task in self.tasks.values():
                        if task.done() and not task.cancelled():
                            task.result()
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError({who: self.said(who) for who in self.events}) from None

    async def finished(self) -> Path:
        """The coordinator's run folder, once everybody ended well."""
        await self.until(self.tasks[COORDINATOR].done)
        await self.until(lambda: all(task.done() for task in self.tasks.values()))
        return self.tasks[COORDINATOR].result()

    # --- The operators ------------------------------------------------------------------------------------------------

    def asked(self, who: str) -> list[str]:
        """The commands that a site named to its operator."""
        return [e["text"].split(ASKED)[1] for e in self.of(who, "note") if ASKED in e["text"]]

    async def run(self, *command: str) -> str:
        """Run a command as an operator would; returns what it printed."""
        result = await asyncio.to_thread(CliRunner().invoke, app, command[1:])
        assert result.exit_code == 0, (command, result.output, result.exception)
        return result.output

    async def accept(self, *names: str) -> list[str]:
        """Wait until each of these sites names a command that was not run yet, and run it."""
        await self.until(lambda: all(set(self.asked(name)) - self._answered for name in names))
        printed = []
        for name in names:
            for command in set(self.asked(name)) - self._answered:
                self._answered.add(command)
                printed.append(await self.run(*shlex.split(command)))
        return printed

    async def accept_whatever_is_asked(self) -> None:
        """What operators do who accept everything, until this is cancelled."""
        while True:
            for name in self.study.site_ids:
                if set(self.asked(name)) - self._answered:
                    await self.accept(name)
            await asyncio.sleep(0.1)

    async def finished_round(self, number: int) -> None:
        """Wait until a round has a sum."""
        await self.until(lambda: any(event["round"] == number for event in self.of(COORDINATOR, "end_round")))
