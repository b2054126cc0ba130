"""MixLoRA (arXiv 2404.15159): experts inside the FFN block, one router per layer."""
