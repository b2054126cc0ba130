"""MixLoRA (arXiv 2404.15159) has experts inside the FFN block, and one router per layer."""
