"""What the engine's worker processes answer beyond vLLM's own calls."""

from negtemp_data.engine.requests import take_traces
from negtemp_data.sampling import Trace


class InjectionExtension:
    """Mixed into vLLM's worker class (`worker_extension_cls`)."""

    def take_injection_traces(self, keys: list[str]) -> list[tuple[str, Trace]]:
        """Ends requests and returns their traces, by key."""
        return list(take_traces(keys).items())
