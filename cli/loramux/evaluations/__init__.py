"""This package runs published evaluations again.

There is one module each; `loramux evaluate` shows them.
"""
