"""Published evaluations, run again: one module each; `loramux evaluate` shows them."""
