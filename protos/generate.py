"""Generates the Python code of every proto into the SDK, the one home of generated code.

`python protos/generate.py [TARGET]`: TARGET defaults to clients/python/src; the freshness test passes another folder.
"""

import sys
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).parent
SDK = PROTOS.parent / "clients/python/src"


def generate(target: Path) -> None:
    """Writes *_pb2{.py,.pyi} and *_pb2_grpc{.py,.pyi} under `target`. Raises RuntimeError when protoc refuses."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    # Plugins (mypy-protobuf) are found beside the interpreter even when .venv/bin is not on PATH.
    plugins = [
        f"--plugin={name}={Path(sys.executable).parent / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
    ]
    outputs = [f"--{kind}_out={target}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    code = protoc.main(["protoc", f"-I{PROTOS}", f"-I{builtin_protos()}", *plugins, *outputs, *sources])
    if code != 0:
        raise RuntimeError(f"protoc ended with {code}")


def builtin_protos() -> Path:
    """The folder of google/protobuf/*.proto that grpcio-tools ships."""
    return Path(protoc.__file__).parent / "_proto"


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else SDK)
