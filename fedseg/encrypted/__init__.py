"""Encrypted inference: an answer on a picture that the model's owner never sees, by a model that its user never sees.

Three parties compute on shares (SPU's ABY3, replicated secret sharing): the owner of the pictures, the owner of the
model, and a third party who has neither. Each knows the network's shape and the pictures' size. All are honest but
curious, and no two of them put together what they have: docs/howto/encrypted.md.

    program      the network as a list of steps: public, checked by everybody who runs it
    tracing      a PyTorch network as such a program, with its weights (needs torch)
    arithmetic   a program in JAX (needs jax)
    parties      parties.toml: addresses, certificates, the model's hash
    engine       the process that computes (needs spu)
    session      what its owner sees of that process: one sentence for whatever goes wrong
    checking     all three on one computer, held against PyTorch
    asking       the data owner's end, in the place of a network (needs torch)
"""
