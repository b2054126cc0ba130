"""MoLA (arXiv 2402.08562) has layer-wise numbers of experts and routes by top-k.

LoRAMoE is its all-experts case.
"""
