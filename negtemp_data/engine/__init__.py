"""vLLM: models, prompts as tokens, schedules as requests, and the engine that runs them.

The only package that imports vllm, and only in the modules that run inside an engine's process.
"""
