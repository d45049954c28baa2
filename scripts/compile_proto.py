"""Compile serve/open_inference.proto to the descriptor that the server loads.

    uvx --from grpcio-tools python scripts/compile_proto.py

A descriptor instead of generated modules: those demand a runtime of their own version of protobuf.
"""

from __future__ import annotations

from pathlib import Path

from grpc_tools import protoc

FOLDER = Path(__file__).resolve().parent.parent / "src" / "trtrun" / "serve"

if __name__ == "__main__":
    target = FOLDER / "open_inference.desc"
    if protoc.main(["protoc", f"-I{FOLDER}", f"--descriptor_set_out={target}", str(FOLDER / "open_inference.proto")]):
        raise SystemExit("protoc failed")
    print(f"{target}: {target.stat().st_size} bytes")
