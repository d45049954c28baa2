"""The README's Python runs as it is pasted, and its translation has the same."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.readme import blocks, pasting
from trtrun.cli import app


def test_what_needs_no_gpu_runs_as_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, use, on_gpu, state = blocks("README.md", "python")
    assert '"model.engine"' in first  # engines and torch's arrays: tests/gpu/test_readme.py
    assert "cuda" in on_gpu
    with pasting(tmp_path, monkeypatch) as names:
        exec(first, names)
        assert names["out"]["logits"].shape == (1, 1000)
        exec(use, names)
        assert Path("model.engine").is_file()
        assert names["pred"](np.zeros((8, 3, 224, 224), np.float32))["logits"].shape == (8, 1000)
        exec(state, names)
        assert names["out"]["sum"] == sum(range(8))


def test_the_translation_has_the_same_code_and_commands() -> None:
    def without_comments(name: str, language: str) -> list[str]:
        return [re.sub(r" *#.*", "", block) for block in blocks(name, language)]

    for language in ("python", ""):
        assert without_comments("README.md", language) == without_comments("README.zh-CN.md", language)


def test_the_options_that_are_shown_exist() -> None:
    for line in "\n".join(blocks("README.md", "")).splitlines():
        if words := re.match(r"trtrun (\w+(?: create)?) ", line):
            command = words[1].split(" ")
            command = command[:1] if command[0] != "bundle" else command
            shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "300"}).output
            for option in re.findall(r"--[a-z0-9-]+", line.partition("#")[0]):
                assert option in shown, line
