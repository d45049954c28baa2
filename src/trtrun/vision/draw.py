"""Detections drawn on their picture."""

from __future__ import annotations

from .preprocess import Picture, import_cv2
from .results import Detections

_BOX, _MARK, _INK = (60, 170, 40), (255, 200, 0), (255, 255, 255)  # BGR


def draw(picture: Picture, detections: Detections, *, label: str = "") -> Picture:
    """A copy of a BGR picture with boxes, landmarks and ``label score`` texts, scaled to the picture's size."""
    cv2 = import_cv2()
    canvas = picture.copy()
    height, width = canvas.shape[:2]
    thickness = max(2, round(min(height, width) / 220))
    font, size = cv2.FONT_HERSHEY_SIMPLEX, max(0.45, min(height, width) / 900)
    for index, box in enumerate(detections.boxes):
        x1, y1, x2, y2 = (round(float(v)) for v in box)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), _BOX, thickness, cv2.LINE_AA)
        for x, y in detections.landmarks[index] if detections.landmarks is not None else ():
            cv2.circle(canvas, (round(float(x)), round(float(y))), thickness, _MARK, cv2.FILLED, cv2.LINE_AA)
        text = f"{label} {detections.scores[index]:.2f}".strip()
        (text_width, text_height), below = cv2.getTextSize(text, font, size, max(1, thickness // 2))
        left = min(max(x1 - thickness // 2, 0), max(width - text_width - 6, 0))
        # Above the box where there is room, else inside it.
        bottom = y1 - below if y1 - text_height - 2 * below > 0 else y1 + text_height + below + thickness
        cv2.rectangle(
            canvas, (left, bottom - text_height - below), (left + text_width + 6, bottom + below), _BOX, cv2.FILLED
        )
        cv2.putText(canvas, text, (left + 3, bottom), font, size, _INK, max(1, thickness // 2), cv2.LINE_AA)
    result: Picture = canvas
    return result
