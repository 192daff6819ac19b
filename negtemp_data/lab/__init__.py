"""Experiments on models: so far, what a job's judge is worth.

Uses the pipeline as a user would; nothing here runs inside a worker.
"""
