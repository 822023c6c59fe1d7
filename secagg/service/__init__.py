"""Runs a federation that sums vectors, as two processes: a coordinator and, at each party, a member.

`dialogue` is what they tell each other around the protocol, `account` proves who was in a sum, `presence` is who is
there, `journal` what a coordinator must not forget, `coordinator` and `member` are the two engines. An application such
as fedseg gives an engine what goes out with a round and what a sum means.
"""
