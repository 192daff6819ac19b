"""Judge-verified, high-variance completions from scheduled negative-temperature sampling.

Importing the package loads nothing heavy: torch, ray and vllm come in with the part that needs
them (`negtemp_data.sampling`, `negtemp_data.pipeline`, `negtemp_data.engine`).
"""

__version__ = "0.1.0"
