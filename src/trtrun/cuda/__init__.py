"""CUDA through cuda.core and cuda.bindings: the only package that imports them. One file per CUDA noun."""
