"""Students as ONNX graphs: written, checked against PyTorch, quantised, scored and timed."""
