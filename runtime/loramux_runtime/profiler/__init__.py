"""Measuring the real fused step: live storages, step times, and the points that models are fitted to."""
