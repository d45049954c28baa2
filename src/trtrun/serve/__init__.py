"""A server for the Open Inference Protocol (KServe v2), the one that Triton's clients speak."""
