"""Sparse checkpoints of other formats, read as the dense tensors that they stand for."""
