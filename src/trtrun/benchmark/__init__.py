"""trtexec's measurements from Python: an engine alone, its transfers and its launches timed by CUDA events."""

from .measure import BenchOptions, Measurement, measure
from .metrics import Metrics, Summary, Trace, evaluate
from .report import html, text

__all__ = ["BenchOptions", "Measurement", "Metrics", "Summary", "Trace", "evaluate", "html", "measure", "text"]
