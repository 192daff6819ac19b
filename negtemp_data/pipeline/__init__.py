"""The run: plan → workers that generate, judge and commit → data set.

The only package that wires the others together, and the only one that imports ray.
"""
