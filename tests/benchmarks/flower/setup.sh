#!/bin/sh
# Makes build/flowerenv: Flower in an environment of its own, because it needs older protobuf, rich and typer than we do.
# Run: sh tests/benchmarks/flower/setup.sh. bench_flower.py finds it there; nothing of this project is installed in it.
set -eu
cd "$(dirname "$0")/../../.."

environment=build/flowerenv
if ! "$environment/bin/python" -c 'import flwr' 2>/dev/null; then
    "${PYTHON:-python3}" -m venv "$environment"
    # numpy and cryptography as in constraints.txt: the comparison is about the protocol, not about library versions.
    "$environment/bin/pip" install --quiet --disable-pip-version-check 'flwr==1.41.0' \
        "$(grep '^numpy==' constraints.txt)" "$(grep '^cryptography==' constraints.txt)"
fi
"$environment/bin/python" -c 'import flwr, sys; print(f"flwr {flwr.__version__} in {sys.prefix}")'
