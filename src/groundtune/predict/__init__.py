"""Inference: from images and class names to detections, results and data sets."""
