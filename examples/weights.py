"""Hospitals of different size: public weights make the sum a weighted one, and no weight can make a value larger.

Run it: python examples/weights.py
"""

import numpy as np

import secagg

patients = {"large": 60.0, "middle": 30.0, "small": 10.0, "tiny": 5.0}
keys = {site: secagg.SigningKey.generate() for site in patients}
pinned = secagg.PinnedRoster({site: key.verify_key for site, key in keys.items()})

# The weights are part of the policy, so that every party knows them and nobody can change its own.
policy = secagg.Policy(project="example", clients=4, length=3, clip_range=1.0, weights=patients, value_bits=20)
context = secagg.RoundContext("trial", 1, 0, model_hash=bytes(32), task_hash=bytes(32))

# This policy names no server key: the round's start is not signed, and checking it is up to the caller.
opened = secagg.unchecked_round(context)
server = secagg.ServerSession(policy, pinned, context)
clients = {
    site: secagg.ClientSession(policy, site, keys[site], pinned, opened, secagg.MemoryStore()) for site in patients
}
updates = {site: np.array([1.0, -0.5, 0.01 * i]) for i, site in enumerate(patients)}
messages = {site: client.start() for site, client in clients.items()}
for site, client in clients.items():
    client.provide(updates[site])
while not server.finished:
    for site, message in messages.items():
        server.receive(site, message)
    messages = {site: clients[site].receive(reply) for site, reply in server.close_step().items()}

# The mean divides by the weights of those who are in the sum.
total = secagg.dequantize(server.result, policy)
mean = total / sum(policy.weight(site) for site in server.included)
expected = sum(patients[site] * update for site, update in updates.items()) / sum(patients.values())
print("weighted mean:", np.round(mean, 4), "expected:", np.round(expected, 4))
assert np.allclose(mean, expected, atol=1e-4)
