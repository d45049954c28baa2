"""Whether two models compute the same: errors per output and per layer, and engines kept only if they agree."""

from .comparer import compare
from .metrics import TensorError, Tolerance
from .report import Comparison, LayerError, html
from .verification import build_verified

__all__ = ["Comparison", "LayerError", "TensorError", "Tolerance", "build_verified", "compare", "html"]
