"""MoLA (arXiv 2402.08562): layer-wise numbers of experts, top-k; and LoRAMoE, its all-experts case."""
