"""A Flower deployment under secure aggregation: a SuperLink and five SuperNodes as processes; run by a test.

python flower_deployed.py [--kill] [--page] prints a line of JSON: what the strategy had, and what a plain mean gives.
With --kill the last SuperNode and its app get a SIGKILL while it trains in the first round; the others go on.
With --page the app is the one of docs/howto/flower.md, its first block as it stands there, with the training of
examples/flower_app below it; updates are not private, as in a new folder, so every node replays each round.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from secagg.federated import layout_for
from secagg.home import Task, trial

SITES, SHAPE = 5, (3, 4)
BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
APP, PAGE = ROOT / "examples/flower_app", ROOT / "docs/howto/flower.md"


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as open_ones:
        sockets = [open_ones.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def listens(port: int, seconds: float = 60.0) -> None:
    """Wait until somebody listens there."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.5)
    raise TimeoutError(f"nobody listens at port {port}")


def plain_mean(sites: int, rounds: int, without: set[int]) -> list[list[float]]:
    model = np.zeros(SHAPE, np.float32)
    stayed = [site for site in range(sites) if site not in without]
    for _ in range(rounds):
        made = {
            site: model * np.float32(0.9) + np.random.default_rng(site).uniform(-0.05, 0.05, SHAPE).astype(np.float32)
            for site in stayed
        }
        whole = sum(100 * (site + 1) for site in stayed)
        model = sum(made[site] * np.float64(100 * (site + 1) / whole) for site in stayed).astype(np.float32)
    return model.tolist()


def app_of_the_page(folder: Path, rounds: int, out: Path) -> Path:
    """The app that a reader of the page writes: what he has to fill in is filled in here, each time by one place."""
    block = PAGE.read_text().split("```python\n")[1].split("```")[0]
    for before, after in (
        ("/var/lib/secagg", str(folder)),
        ("initial_arrays=...", 'initial_arrays=ArrayRecord({"weight": Array(np.zeros((3, 4), np.float32))})'),
        ("num_rounds=3", f"num_rounds={rounds}"),
        ("    strategy.start", "    result = strategy.start"),
    ):
        assert block.count(before) == 1, before
        block = block.replace(before, after)
    told = '{"weight": result.arrays["weight"].numpy().tolist()}'
    block += f"    Path({str(out)!r}).write_text(json.dumps({told}))\n"
    imports, training = (APP / "sumapp/client.py").read_text().split("app = ClientApp(mods=[secagg_mod()])\n")
    app = folder / "app"
    (app / "page").mkdir(parents=True)
    (app / "page/__init__.py").touch()
    (app / "page/lines.py").write_text(imports + "import json\n" + block + training)
    about = (APP / "pyproject.toml").read_text().replace("sumapp.server:app", "page.lines:server")
    (app / "pyproject.toml").write_text(about.replace("sumapp.client:app", "page.lines:app").replace("sumapp", "page"))
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--strategy", default="FedAvg")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    layout = layout_for(
        {"weight": np.zeros(SHAPE, np.float32)}, clip_range=0.5, largest_weight=1000, metrics={"loss": 10.0}
    )
    trial(folder, [f"site-{i}" for i in range(SITES)], layout, Task(private=not options.page))
    trains = folder / "trains"
    superlink, *own = free_ports(1 + SITES)
    environment = {
        **os.environ,
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    (folder / "flwr").mkdir()
    (folder / "flwr/config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{superlink}"\ninsecure = true\n'
    )
    processes: list[subprocess.Popen[bytes]] = []

    def start(*command: object) -> subprocess.Popen[bytes]:
        words = [str(BIN / str(command[0])), *map(str, command[1:])]
        with open(folder / f"{len(processes)}.log", "wb") as log:
            processes.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True))
        return processes[-1]

    began = time.perf_counter()
    try:
        start(
            "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", superlink,
            "--disable-runtime-dependency-installation",
        )  # fmt: skip
        listens(superlink)
        for site in range(SITES):
            config = f'secagg="{folder}/site-{site}" site={site}'
            if options.kill and site == SITES - 1:
                config += f' dies="{trains}"'
            node = start(
                "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{superlink}", "--host", "127.0.0.1",
                "--port", own[site], "--node-config", config,
            )  # fmt: skip
        until = time.monotonic() + 120  # the app goes on with four, and here the fifth has to be there, to die
        while (folder / "0.log").read_text().count("[Fleet.ActivateNode]") < SITES and time.monotonic() < until:
            time.sleep(0.5)
        out = folder / "out.json"
        app, config = APP, f'secagg="{folder}/server" strategy="{options.strategy}" rounds={options.rounds} out="{out}"'
        if options.kill:
            config += f" sites={SITES - 1}"
        if options.page:
            app, config = app_of_the_page(folder, options.rounds, out), "rounds=0"
        for attempt in range(5):  # on a busy machine a SuperLink answers late, and then `flwr run` gives up at once
            command = [BIN / "flwr", "run", app, "here", "--run-config", config]
            last = attempt == 4
            if not subprocess.run(
                command, env=environment, check=last, stdout=sys.stderr, stderr=sys.stderr
            ).returncode:
                break
            time.sleep(5)
        while not out.exists() and time.perf_counter() - began < 850:
            if trains.exists() and node.poll() is None:
                os.killpg(node.pid, signal.SIGKILL)
                node.wait()
            time.sleep(0.5)
        told = json.loads(out.read_text())
    except Exception:
        for log in sorted(folder.glob("*.log")):
            print(f"--- {log.name}", log.read_text(errors="replace")[-3000:], file=sys.stderr)
        raise
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    told["plain"] = plain_mean(SITES, options.rounds, {SITES - 1} if options.kill else set())
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
