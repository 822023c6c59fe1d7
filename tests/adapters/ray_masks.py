"""A round whose masks a Ray cluster expands, and masks of this process alone; run in the environment of Ray."""

import json

import numpy as np
import ray

import secagg
from secagg import wire
from secagg.prg import apply_masks
from secagg.ray import RayExecutor

LENGTH = 600_000  # values: three ranges of a task each


def round_of(executor: RayExecutor) -> tuple[np.ndarray, list[str]]:
    sites = [f"site-{i}" for i in range(5)]
    keys = {site: secagg.SigningKey.generate() for site in sites}
    pinned = secagg.PinnedRoster({site: key.verify_key for site, key in keys.items()})
    policy = secagg.Policy(project="ray", clients=5, length=LENGTH, clip_range=1.0, suite=secagg.Suite.X25519)
    context = secagg.RoundContext("run", 1, 0, bytes(32), bytes(32))
    server = secagg.ServerSession(policy, pinned, context, executor=executor)
    opened = secagg.unchecked_round(context)
    clients = {
        site: secagg.ClientSession(policy, site, keys[site], pinned, opened, secagg.MemoryStore(), executor)
        for site in sites
    }
    messages = {site: client.start() for site, client in clients.items()}
    for i, client in enumerate(clients.values()):
        client.provide(np.full(LENGTH, 0.1 * (i + 1)))
    while not server.finished:
        for site, message in messages.items():
            if server.step != "MaskedInputCollection" or site != "site-4":
                server.receive(site, wire.decode_from_client(wire.encode(message)))
        replies = server.close_step()
        messages = {} if server.finished else {site: clients[site].receive(reply) for site, reply in replies.items()}
    return secagg.dequantize(server.result, policy), list(server.dropped)


def main() -> None:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    executor = RayExecutor()
    total, dropped = round_of(executor)
    seeds = [bytes([i]) * 32 for i in range(7)]
    alone, there = np.zeros(LENGTH, np.uint32), np.zeros(LENGTH, np.uint32)
    apply_masks(alone, seeds[:4], seeds[4:])
    apply_masks(there, seeds[:4], seeds[4:], executor)
    told = {
        "equal": bool((alone == there).all() and np.allclose(total, 0.1 + 0.2 + 0.3 + 0.4, atol=1e-3)),
        "left out": ["site-4"],
        "dropped": dropped,
        "repr": repr(executor),
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
