"""The differentiable search: architecture weights and filter weights in turn."""
