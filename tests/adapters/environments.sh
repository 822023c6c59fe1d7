#!/bin/sh
# Makes build/envs/flower, build/envs/nvflare and build/envs/ray: secagg's wheel beside the systems that it plugs into,
# each in an environment of its own, because their pins differ (flwr needs protobuf < 7, rich < 15 and typer < 0.21).
# Run: make adapters. What is pinned lies beside this file; `pip check` must be clean in each.
set -eu
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}
wheels=build/envs/wheel
rm -rf "$wheels"
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps -w "$wheels" .
for name in ${*:-flower nvflare ray}; do
    environment=build/envs/$name
    [ -x "$environment/bin/python" ] || "$python" -m venv "$environment"
    # The wheel first without what it needs, so that the one built here is taken and no other of its name.
    "$environment/bin/pip" install --quiet --disable-pip-version-check --force-reinstall --no-deps "$wheels"/*.whl
    "$environment/bin/pip" install --quiet --disable-pip-version-check -c "tests/adapters/$name.txt" "secagg[$name]"
    "$environment/bin/pip" check
done
