"""Run mypy --strict on src/ with the stubs of the full TensorRT API.

tensorrt-stubs cannot be used as published: it has no py.typed in the packages it describes, and signatures that are
not Python (parameters named ``in``, defaults before non-defaults), and its module attribute ``bool`` hides the
builtin in every annotation. A mended copy in .typecheck/ is given to mypy.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / ".typecheck"


def mended_stubs() -> Path:
    """Copy the stubs to .typecheck/ with the signatures that do not parse mended."""
    shutil.rmtree(TARGET, ignore_errors=True)
    for package in ("tensorrt", "tensorrt_bindings"):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit("tensorrt-stubs is not installed: make setup")
        source = Path(next(iter(spec.submodule_search_locations)))
        (TARGET / package).mkdir(parents=True)
        for stub in source.glob("*.pyi"):
            text = re.sub(r"(?<=[(,] )in:", "in_:", stub.read_text()).replace("(in:", "(in_:")
            text = re.sub(r"^bool: .*$", "", text, flags=re.M)
            text = re.sub(r"^( +def \w+\(.* = [^,()]+, \w+: [^=,()]+\) -> .*)$", _without_defaults, text, flags=re.M)
            (TARGET / package / stub.name).write_text(text)
    return TARGET


def _without_defaults(match: re.Match[str]) -> str:
    return re.sub(r" = [^,()]+(?=[,)])", "", match.group(1))


if __name__ == "__main__":
    environment = {**os.environ, "MYPYPATH": f"{mended_stubs()}{os.pathsep}{ROOT / 'src'}"}
    raise SystemExit(
        subprocess.call([sys.executable, "-m", "mypy", "-p", "trtrun", *sys.argv[1:]], cwd=ROOT, env=environment)
    )
