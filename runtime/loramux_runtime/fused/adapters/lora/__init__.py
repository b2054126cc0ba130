"""This folder has LoRA (arXiv 2106.09685), with rsLoRA (2312.03732) and DoRA (2402.09353)."""
