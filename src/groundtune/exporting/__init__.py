"""Export models to ONNX and OpenVINO files, and run these files."""
