#!/bin/sh
# The tests of secagg's core beside other systems' pins: each line is a Python and what is installed before secagg.
# Run: make compat. A Python that is not there is skipped by name.
set -u
cd "$(dirname "$0")/.."
failed=0
check() {
    python=$1
    shift
    command -v "$python" >/dev/null && "$python" -c '' 2>/dev/null || { echo "skipped: no $python here"; return; }
    environment=build/compat-$python
    "$python" -m venv --clear "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check "$@" -e . grpcio grpcio-health-checking pytest hypothesis
    "$environment/bin/python" -m pytest -q -p no:cacheprovider tests/secagg --ignore tests/secagg/test_secagg_types.py || failed=1
    echo "$python with $*: $("$environment/bin/pip" list 2>/dev/null | grep -iE '^(numpy|protobuf|cryptography) ' | tr -s ' ' | tr '\n' ' ')"
}
check python3.11 'numpy==1.26.4' 'protobuf==6.33.6' 'cryptography==48.0.1'
check python3.12 'numpy==1.26.4' 'protobuf==6.33.6' 'cryptography==48.0.1'
check python3.13 'numpy>=2.1' 'protobuf>=7' 'cryptography>=50'
exit $failed
