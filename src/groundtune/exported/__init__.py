"""Models as one file for runtimes without PyTorch: ONNX and OpenVINO."""
