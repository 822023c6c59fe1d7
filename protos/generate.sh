#!/bin/sh
# Generates the message classes (never services) of protos/*.proto and their type stubs. The result is committed.
# grpcio-tools 1.78.2 lives in an environment of its own: its output runs on protobuf 6 and 7, newer output does not.
set -eu
cd "$(dirname "$0")/.."

environment=build/protoenv
if ! "$environment/bin/python" -c 'import grpc_tools' 2>/dev/null; then
    "${PYTHON:-python3}" -m venv "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check 'grpcio-tools==1.78.2'
fi

# generate PACKAGE NAME: the package is part of the registered file name, so that no other distribution's file of that
# name collides with ours in protobuf's one global pool.
generate() {
    "$environment/bin/python" -m grpc_tools.protoc -I "$1=protos" --python_out=. --pyi_out=. "protos/$2.proto"
    # The generator writes bare `Mapping` in the stubs, which strict type checking refuses.
    printf '%s\n' '# mypy: disable-error-code="type-arg"' | cat - "$1/$2_pb2.pyi" > "build/$2_pb2.pyi"
    mv "build/$2_pb2.pyi" "$1/$2_pb2.pyi"
}

generate secagg/rpc transport
if [ -e protos/secagg.proto ]; then
    generate secagg secagg
fi
