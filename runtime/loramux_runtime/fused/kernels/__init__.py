"""This folder has the arithmetic of a fused step.

It is what torch does not offer as one differentiable operation.
"""
