"""Five sites add their vectors in one process. Every message goes as bytes, and every site checks the round's start.

Run it: python examples/sum_vectors.py
"""

import numpy as np

import secagg
from secagg import wire

# 1. What people agree on before anything runs. In real life each site makes its own key and tells only `verify_key`.
sites = ("amsterdam", "bern", "cork", "delft", "essen")
keys = {site: secagg.SigningKey.generate() for site in sites}
server_key = secagg.SigningKey.generate()
pinned = secagg.PinnedRoster({site: key.verify_key for site, key in keys.items()})
policy = secagg.Policy(
    project="example",
    clients=5,  # how many are in the roster, never how many showed up
    length=1000,  # values of a vector
    clip_range=1.0,  # every value is clipped to -1..1
    max_corrupt=1,  # one site may collude with the server
    server_key=server_key.verify_key,
)
run = "trial"
model_hash = bytes(32)  # what the vectors are about; there is no model here
task_hash = bytes(32)  # what else defines the task

# 2. The server announces the round. Each site holds the announcement against what it agreed to.
book = secagg.RoundBook(run, task_hash, server_key, policy.max_corrupt)
start = wire.encode(book.start(model_hash))
server = secagg.ServerSession(policy, pinned, book.context(model_hash), server_key)
clients = {}
for site in sites:
    announced = wire.decode_from_server(start)
    store = secagg.MemoryStore()  # a real site uses secagg.sqlite.SqliteStore, one file for its data set
    opened = secagg.open_round(policy, pinned, run, announced, store, model_hash=model_hash, task_hash=task_hash)
    clients[site] = secagg.ClientSession(policy, site, keys[site], pinned, opened, store)

# 3. Each site has a vector that nobody else may see.
vectors = {site: np.random.default_rng(i).uniform(-1, 1, 1000) for i, site in enumerate(sites)}
mail = [(site, wire.encode(client.start())) for site, client in clients.items()]
for site, client in clients.items():
    client.provide(vectors[site])

# 4. The messages go back and forth, one step after the other.
while not server.finished:
    for site, data in mail:
        server.receive(site, wire.decode_from_client(data))
    print(f"{server.step:<24} {len(mail)} messages, {sum(len(data) for _, data in mail):>6} bytes")
    replies = wire.encode_each(server.close_step())
    answers = ((site, clients[site].receive(wire.decode_from_server(data))) for site, data in replies.items())
    mail = [(site, wire.encode(answer)) for site, answer in answers if answer is not None]

# 5. The sum is there, and no vector is.
total = secagg.dequantize(server.result, policy)
wrong = np.abs(total - sum(vectors.values())).max()
print(f"the sum of {len(server.included)} vectors; the largest error of rounding is {wrong:.5f}")
assert wrong < 5 / policy.largest_value
