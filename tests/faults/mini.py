"""Parties of a few lines on `secagg.rpc` and `secagg.driver`: no journal, no presence. Until the real ones are here."""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

import numpy as np

from secagg.driver import Completed, Exposed, Failed, Joined, Published, Refused, Retrying, Save, Send, Silent
from secagg.encoding import digest
from secagg.home import Home
from secagg.rpc.client import MailboxClient
from secagg.rpc.frames import GONE, HELLO, message_limit
from secagg.rpc.server import MailboxServer
from secagg.rpc.tls import ClientTls, ServerTls


def say(event, **fields):
    print(json.dumps({"event": event, "at": round(time.time(), 3), **fields}), flush=True)


async def serve(folder, port, rounds, out, step_seconds):
    home = Home.read(folder)
    sites = sorted(home.federation.pinned)
    tls = ServerTls.load(folder / "authority.pem", folder / "coordinator.pem", folder / "coordinator.key")
    server = MailboxServer(sites, tls, max_message_bytes=message_limit(home.policy))
    driver = home.server(step_seconds=step_seconds, input_seconds=10 * step_seconds)
    port = await server.start("127.0.0.1", port)
    say("listening", port=port)
    ready, done, step = set(), 0, ""

    def serve_actions(actions):
        nonlocal done
        for action in actions:
            match action:
                case Send(data, to):
                    server.send(to, "secagg", data)
                case Save(book):
                    home.save_book(book)
                case Completed():
                    done += 1
                    out.mkdir(exist_ok=True)
                    np.save(out / f"{done:04d}.npy", action.total)
                    (out / f"{done:04d}.json").write_text(json.dumps({"included": action.included}))
                    say("completed", round=done, included=action.included, head=action.receipt.head.hex())
                case Published(path) if path is not None:
                    for site in sites:
                        server.send(site, "transcript", Path(path).read_bytes())
                case Silent() | Retrying() | Failed() | Refused():
                    say(type(action).__name__.lower(), text=str(action))

    while done < rounds or driver.deadline is not None:
        if not driver.running and driver.deadline is None and len(ready) == len(sites):
            ready.clear()
            serve_actions(driver.begin(digest("sum", driver.book.head), now=time.monotonic()))
        if driver.running and driver.session.step != step:
            step = driver.session.step
            say("step", step=step, round=driver.book.number, attempt=driver.book.attempt)
        timeout = None if driver.deadline is None else max(0.0, driver.deadline - time.monotonic())
        received = await server.receive(timeout)
        now = time.monotonic()
        if received is None:
            serve_actions(driver.tick(now))
        elif received.kind == "ready":
            ready.add(received.sender)
        elif received.kind == HELLO:
            driver.back(received.sender)
        elif received.kind == GONE:
            serve_actions(driver.gone(received.sender, now))
        elif received.kind == "secagg":
            serve_actions(driver.receive(received.sender, received.payload, now))
    for site in sites:
        server.send(site, "finished", b"")
    say("stopping", there=sorted(server.connected()), waiting={s: len(server._peers[s].queue) for s in sites})
    await server.stop()
    say("stopped", waiting={s: len(server._peers[s].queue) for s in sites})
    say("finished")


async def join(folder, address, vectors, out):
    home = Home.read(folder)
    tls = ClientTls.load(folder / "authority.pem", folder / f"{home.me}.pem", folder / f"{home.me}.key", [home.me])
    store = home.store()
    driver = home.client(store)

    async def perform(mailbox, actions):
        for action in actions:
            match action:
                case Send(data):
                    await mailbox.send("secagg", data)
                case Joined(number, attempt, _, provided):
                    say("joined", round=number, attempt=attempt)
                    if not provided:
                        path = vectors / f"{number:04d}.npy" if vectors.is_dir() else vectors
                        await perform(mailbox, driver.provide(np.load(path), f"round {number}"))
                case Completed():
                    number = action.receipt.round_number
                    out.mkdir(exist_ok=True)
                    np.save(out / f"{number:04d}.npy", action.total)
                    say("completed", round=number, included=action.included, head=action.receipt.head.hex())
                case Failed() | Refused() | Exposed():
                    say(type(action).__name__.lower(), text=str(action))

    async with MailboxClient(address, home.me, tls, max_message_bytes=message_limit(home.policy)) as mailbox:
        await mailbox.connect()
        await mailbox.send("ready", b"{}")
        while (received := await mailbox.receive()).kind != "finished":
            await perform(mailbox, home.receive(driver, store, received.payload))
            if not driver.live and received.kind == "secagg":
                await mailbox.send("ready", b"{}")
    say("finished")


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command")
    serving, joining = commands.add_parser("serve"), commands.add_parser("join")
    for command in (serving, joining):
        command.add_argument("folder", type=Path)
        command.add_argument("--out", type=Path)
    serving.add_argument("--port", type=int, default=0)
    serving.add_argument("--host", default="127.0.0.1")
    serving.add_argument("--rounds", type=int, default=1)
    serving.add_argument("--step-seconds", type=float, default=60)
    joining.add_argument("--coordinator")
    joining.add_argument("--vector", type=Path)
    given = parser.parse_args(sys.argv[1:])
    if given.command == "serve":
        asyncio.run(serve(given.folder, given.port, given.rounds, given.out, given.step_seconds))
    else:
        asyncio.run(join(given.folder, given.coordinator, given.vector, given.out))


if __name__ == "__main__":
    main()
