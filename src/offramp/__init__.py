"""Dynamic inference for transformers."""
