"""What only a CUDA device or an NPU can show; ``python -m pytest tests/accelerator`` there. Skipped elsewhere."""
