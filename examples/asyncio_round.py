"""A server and six sites as asyncio tasks; one site falls silent and one sends rubbish. Twenty lines drive both sides.

Run it: python examples/asyncio_round.py
"""

import asyncio
import time

import numpy as np

import secagg
from secagg import Completed, Failed, NeedInput, Send

sites = ("amsterdam", "bern", "cork", "delft", "essen", "florence")
keys = {site: secagg.SigningKey.generate() for site in sites}
server_key = secagg.SigningKey.generate()
pinned = secagg.PinnedRoster({site: key.verify_key for site, key in keys.items()})
policy = secagg.Policy(project="example", clients=6, length=1000, clip_range=1.0, server_key=server_key.verify_key)
run, model_hash, task_hash = "trial", bytes(32), bytes(32)
vectors = {site: np.random.default_rng(i).uniform(-1, 1, 1000) for i, site in enumerate(sites)}
mail: asyncio.Queue = asyncio.Queue()  # your transport: it says who sent what
boxes: dict[str, asyncio.Queue] = {site: asyncio.Queue() for site in sites}


async def serve(driver: secagg.ServerDriver) -> Completed | Failed:
    """The server's side, to its end."""
    actions = driver.begin(model_hash, now=time.monotonic())
    while True:
        for action in actions:
            match action:
                case Send():
                    boxes[action.to].put_nowait(action.data)
                case Completed() | Failed():
                    return action
        try:
            sender, data = await asyncio.wait_for(mail.get(), driver.deadline - time.monotonic())
            actions = driver.receive(sender, data, time.monotonic())
        except TimeoutError:
            actions = driver.tick(time.monotonic())


async def take_part(site: str, driver: secagg.ClientDriver) -> Completed | Failed:
    """A site's side, to its end."""
    driver.model_hash = model_hash  # of the model that this site will train
    while True:
        actions = driver.receive(await boxes[site].get(), time.monotonic())
        for action in actions:
            match action:
                case Send():
                    mail.put_nowait((site, action.data))
                case NeedInput():
                    actions += driver.provide(vectors[site])
                case Completed() | Failed():
                    return action


async def main() -> None:
    """One round of four sites that speak, one that does not, and one that sends rubbish."""
    book = secagg.RoundBook(run, task_hash, server_key, policy.max_corrupt)
    honest = [site for site in sites if site not in ("cork", "essen")]
    drivers = (
        secagg.ClientDriver(
            policy, site, keys[site], pinned, secagg.MemoryStore(), training_run=run, task_hash=task_hash
        )
        for site in honest
    )
    tasks = [asyncio.create_task(take_part(site, driver)) for site, driver in zip(honest, drivers, strict=True)]
    mail.put_nowait(("essen", b"rubbish"))  # and cork says nothing at all
    done = await serve(secagg.ServerDriver(policy, pinned, book, step_seconds=2.0))
    assert isinstance(done, Completed)
    heard = await asyncio.gather(*tasks)
    assert all(isinstance(told, Completed) and np.array_equal(told.total, done.total) for told in heard)
    wrong = np.abs(done.total - sum(vectors[site] for site in done.included)).max()
    print(f"the sum of {', '.join(done.included)}; the largest error of rounding is {wrong:.5f}")


asyncio.run(main())
