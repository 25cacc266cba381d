"""Inference: class names and images in; detections, result files and labeled data sets out."""
