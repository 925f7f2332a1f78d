"""What stands behind :mod:`pyendor.transformers`: files as transformers opens them, its quantizer, models."""
