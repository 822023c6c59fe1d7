#!/bin/sh
# Makes build/envs/flower, build/envs/nvflare and build/envs/ray: secagg's wheel beside the systems that it plugs into,
# each in an environment of its own, because their pins differ (flwr needs protobuf < 7, rich < 15 and typer < 0.21).
# Run: make adapters. What is pinned lies beside this file; `pip check` must be clean in each. An environment that is
# whole and not older than its pins stays: the tests run on the working tree, not on the wheel in it.
set -eu
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}
environments=${SECAGG_ENVIRONMENTS:-build/envs}
wheels=$environments/wheel
fresh=
for name in ${*:-flower nvflare ray}; do
    environment=$environments/$name
    pins=tests/adapters/$name.txt extras=$name also=
    if [ "$name" = ray ]; then # fedseg trains there too: what it needs is pinned where it is everywhere else
        extras=ray,fedseg also="-c constraints.txt"
    fi
    if [ -f "$environment/.whole" ] && [ ! "$pins" -nt "$environment/.whole" ]; then
        continue
    fi
    if [ -z "$fresh" ]; then
        rm -rf "$wheels"
        "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps -w "$wheels" .
        fresh=yes
    fi
    [ -x "$environment/bin/python" ] || "$python" -m venv "$environment"
    # The wheel first without what it needs, so that the one built here is taken and no other of its name.
    "$environment/bin/pip" install --quiet --disable-pip-version-check --force-reinstall --no-deps "$wheels"/*.whl
    "$environment/bin/pip" install --quiet --disable-pip-version-check -c "$pins" $also "secagg[$extras]"
    "$environment/bin/pip" check
    touch "$environment/.whole"
done
