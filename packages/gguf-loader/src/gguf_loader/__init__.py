"""GGUF checkpoints: read, share and dequantise every ggml type, exactly."""
