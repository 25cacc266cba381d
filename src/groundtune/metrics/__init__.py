"""Numbers that say how good detections are."""
