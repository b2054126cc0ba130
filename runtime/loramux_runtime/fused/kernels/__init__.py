"""The arithmetic of a fused step: what torch does not offer as one differentiable operation."""
