"""From a network's raw outputs to detections: one file per head."""
