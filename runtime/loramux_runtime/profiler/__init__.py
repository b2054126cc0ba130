"""This package measures the real fused step.

It counts live storages, takes step times, and chooses the points that models are fitted to.
"""
