"""The run: plan → Ray Data graph of generate and commit → data set.

The only package that wires the others together, and the only one that imports ray.
"""
