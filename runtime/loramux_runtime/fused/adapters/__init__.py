"""Adapter methods: a folder each; `methods.METHODS` has them by name."""
