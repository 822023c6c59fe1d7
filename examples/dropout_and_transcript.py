"""A site falls silent, the others get their sum, anybody replays it, and a second round goes on from there.

Run it: python examples/dropout_and_transcript.py
"""

import hashlib
import tempfile
from pathlib import Path

import numpy as np

import secagg
from secagg import wire
from secagg.transcript import accept
from secagg.transcript_files import Recorder, verify

sites = ("amsterdam", "bern", "cork", "delft", "essen")
keys = {site: secagg.SigningKey.generate() for site in sites}
server_key = secagg.SigningKey.generate()
pinned = secagg.PinnedRoster({site: key.verify_key for site, key in keys.items()})
policy = secagg.Policy(project="example", clients=5, length=100, clip_range=1.0, server_key=server_key.verify_key)
run, task_hash = "trial", bytes(32)
stores = {site: secagg.MemoryStore() for site in sites}  # outlive the rounds: a data set has one store
book = secagg.RoundBook(run, task_hash, server_key, policy.max_corrupt)


def play(model: np.ndarray, vectors: dict[str, np.ndarray], silent: set[str], path: Path) -> secagg.ServerSession:
    """One round; who is in `silent` sends no masked input and nothing after it."""
    model_hash = hashlib.sha256(model.tobytes()).digest()
    start, context = book.start(model_hash), book.context(model_hash)
    clients = {}
    for site in sites:
        opened = secagg.open_round(policy, pinned, run, start, stores[site], model_hash=model_hash, task_hash=task_hash)
        clients[site] = secagg.ClientSession(policy, site, keys[site], pinned, opened, stores[site])
    with Recorder(path, policy, pinned, context, signing_key=server_key) as recorder:
        server = secagg.ServerSession(policy, pinned, context, server_key, book.leave_out, recorder)
        messages = {site: client.start() for site, client in clients.items()}
        for site, client in clients.items():
            client.provide(vectors[site])
        while messages:
            for site, message in messages.items():
                if server.step == "MaskedInputCollection" and site in silent:
                    continue
                server.receive(site, wire.decode_from_client(wire.encode(message)))
            replies = {} if server.finished else server.close_step()  # the last messages confirm the sum
            answers = {site: clients[site].receive(reply) for site, reply in replies.items()}
            messages = {site: answer for site, answer in answers.items() if answer is not None}
    assert server.receipt is not None
    book.completed(server.receipt)
    return server


with tempfile.TemporaryDirectory() as folder:
    # Round 1: essen falls silent after it shared its keys. The others' shares remove what it left in the sum.
    first, model = Path(folder, "round-1.transcript"), np.zeros(100)
    vectors = {site: np.full(100, 0.1 * (i + 1)) for i, site in enumerate(sites)}
    server = play(model, vectors, {"essen"}, first)
    total = secagg.dequantize(server.result, policy)
    print(f"round 1: included {', '.join(server.included)}; dropped {', '.join(server.dropped)}; sum {total[0]:.3f}")
    assert np.allclose(total, 0.1 + 0.2 + 0.3 + 0.4, atol=1e-3)

    # Anybody with the roster and the policy replays the round from its transcript, without the server.
    verdict = verify([first], policy, pinned)
    print(f"its transcript: {verdict.status}")
    assert verdict.exit_code == 0

    # Without differential privacy a site that released shares joins again only after it replayed the round (C-05).
    moved = model + total / len(server.included)
    try:
        play(moved, vectors, set(), Path(folder, "refused.transcript"))
    except secagg.ExposureError as error:
        print(f"round 2, too early: {error.check}, the round {error.round_ids[0].hex()[:8]}... was not replayed")
    for site in server.included:
        accept(verdict, stores[site])

    # Round 2 follows on the new model, with everybody.
    second = Path(folder, "round-2.transcript")
    server = play(moved, vectors, set(), second)
    print(f"round 2: included {', '.join(server.included)}")
    verdict = verify([first, second], policy, pinned)
    print(f"both transcripts: {verdict.status}; {'; '.join(verdict.notes) or 'no notes'}")
    assert verdict.exit_code == 0
