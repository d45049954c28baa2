"""The demo's engine against the same network in ONNX Runtime: the same faces on every photograph.

The engine is built with the builder's defaults, TF32 among them, so scores and boxes agree closely but not exactly.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import trtrun
from trtrun import demo
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.vision import detector
from trtrun.vision.results import Detections, box_iou


def match(faces: Detections, expected: Detections) -> tuple[np.ndarray, np.ndarray]:
    """Pair each expected face with the one that overlaps it most: indices into ``faces``, and their IoUs."""
    overlap = box_iou(expected.boxes, faces.boxes)
    return overlap.argmax(axis=1), overlap.max(axis=1)


def test_the_engine_finds_the_same_faces(tmp_path: Path) -> None:
    (tmp_path / "centerface.onnx").write_bytes(demo.face_detector())
    with OnnxRuntimeSession(tmp_path / "centerface.onnx") as session:
        reference = demo.detect_all(session)
    with trtrun.load(demo.build_engine(tmp_path)) as session:
        assert "TensorRT" in session.backend
        assert detector(session).postprocess_on == "GPU"
        found = demo.detect_all(session)
    assert sum(len(result.faces) for result in reference) == 6
    for ours, theirs in zip(found, reference, strict=True):
        assert ours.name == theirs.name
        assert len(ours.faces) == len(theirs.faces), ours.name
        if len(theirs.faces) == 0:
            continue
        pairs, overlap = match(ours.faces, theirs.faces)
        assert sorted(pairs) == list(range(len(pairs)))
        assert (overlap >= 0.98).all(), (ours.name, overlap)
        assert np.abs(ours.faces.scores[pairs] - theirs.faces.scores).max() <= 0.01, ours.name
        assert ours.faces.keypoints is not None
        assert theirs.faces.keypoints is not None
        # In pixels of the picture; a face is some hundred pixels wide.
        assert np.abs(ours.faces.keypoints[pairs] - theirs.faces.keypoints).max() <= 2
