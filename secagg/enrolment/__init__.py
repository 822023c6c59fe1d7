"""Enrolment: how hospitals that know each other by telephone become a federation whose keys every site pins.

Everything is a file that people carry: by e-mail, on a stick, over an air gap. Nothing here opens a connection.

    coordinator  office.Office      init, invite, approve, publish, revoke, renew
    a site       site.Site          request, accept, renew

A one-time token, told by telephone, makes an invitation and its answer authentic to each other: both are signed with a
key that follows from it, and the coordinator keeps only the public half. Private keys are made where they are used and
never leave. Must never: write a token, or show a private key.
"""
