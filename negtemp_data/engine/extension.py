"""What the engine's worker processes answer beyond vLLM's own calls."""

from negtemp_data.engine.requests import take_traces
from negtemp_data.sampling import Trace


class InjectionExtension:
    """Mixed into vLLM's worker class (`worker_extension_cls`)."""

    def take_injection_traces(self, lengths: dict[str, int]) -> list[tuple[str, Trace]]:
        """Ends requests, whose texts have so many tokens, and returns their traces, by key."""
        return list(take_traces(lengths).items())
