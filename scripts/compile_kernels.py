"""Compile the CUDA kernels in src/trtrun/cuda/kernels to PTX, which is committed: users need no compiler.

    python scripts/compile_kernels.py [--check]

Needs NVRTC (``nvidia-cuda-nvrtc``) and no GPU. The driver turns PTX into machine code for the GPU at hand.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cuda.bindings import nvrtc

KERNELS = Path(__file__).resolve().parent.parent / "src" / "trtrun" / "cuda" / "kernels"
ARCHITECTURE = "compute_75"  # the oldest that TensorRT 10 and CUDA 13 support
# The PTX version decides which drivers accept the text. The kernels use nothing newer than this one, of CUDA 11.0.
PTX_VERSION = "7.0"


def checked(result: tuple[object, ...]) -> object:
    if result[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"NVRTC: {result[0]}")
    return result[1] if len(result) > 1 else None


def compile_to_ptx(source: Path) -> str:
    program = checked(nvrtc.nvrtcCreateProgram(source.read_bytes(), source.name.encode(), 0, [], []))
    options = [f"--gpu-architecture={ARCHITECTURE}".encode(), b"--std=c++17"]
    (code,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if code != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = b" " * int(checked(nvrtc.nvrtcGetProgramLogSize(program)))  # type: ignore[call-overload]
        checked(nvrtc.nvrtcGetProgramLog(program, log))
        raise RuntimeError(log.decode())
    text = b" " * int(checked(nvrtc.nvrtcGetPTXSize(program)))  # type: ignore[call-overload]
    checked(nvrtc.nvrtcGetPTX(program, text))
    ptx = text.rstrip(b"\0").decode()
    ptx = re.sub(r"^//.*\n", "", ptx, flags=re.M)  # names the compiler's build, which says nothing about the kernel
    ptx = re.sub(r"^\s*\.pragma \"used_bytes_mask.*\n", "", ptx, flags=re.M)  # a hint, newer than the version below
    return re.sub(r"^\.version .*$", f".version {PTX_VERSION}", ptx, flags=re.M).strip() + "\n"


def main(arguments: list[str]) -> int:
    stale = []
    for source in sorted(KERNELS.glob("*.cu")):
        target = source.with_suffix(".ptx")
        ptx = compile_to_ptx(source)
        if not target.exists() or target.read_text() != ptx:
            stale.append(target.name)
            if "--check" not in arguments:
                target.write_text(ptx)
    print(f"{'stale' if '--check' in arguments else 'written'}: {', '.join(stale) or 'none'}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
