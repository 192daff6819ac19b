"""What `negtemp doctor` finds at the address of a Ray cluster."""

import re
from collections.abc import Iterator

from negtemp_data.cli.findings import PIP, Finding
from negtemp_data.errors import ClusterError, ClusterTokenError

_OLDEST_RAY = (2, 58)
"""As in the dependencies of pyproject.toml."""


def cluster_findings(address: str) -> Iterator[Finding]:
    """Whether the cluster answers, its version, its machines and GPUs."""
    from negtemp_data.cluster.client import JobsClient  # noqa: PLC0415

    try:
        client = JobsClient(address)
        nodes = client.nodes()
    except ClusterTokenError as error:
        yield Finding("problem", str(error), "export RAY_AUTH_MODE=token")
        return
    except ClusterError as error:
        yield Finding("problem", str(error), f"curl {address}/api/version")
        return
    yield Finding("ok", f"Ray cluster at {address}: {len(nodes)} machine{'s' * (len(nodes) != 1)}")
    yield _compare(client.cluster_version, client.own_version)
    gpus = sum(node.gpus for node in nodes)
    memory = [gib for node in nodes for gib in node.gpu_memory_gib]
    sizes = f", the smallest with {min(memory):.0f} GiB" if memory else ""
    yield Finding("ok", f"the cluster's GPUs: {gpus:g}{sizes}")


def _compare(cluster: str, own: str) -> Finding:
    if cluster == own:
        return Finding("ok", f"Ray {cluster} on the cluster, as here")
    what = f"Ray {cluster} on the cluster, {own} here"
    numbers = re.match(r"(\d+)\.(\d+)", cluster)
    if numbers and (int(numbers[1]), int(numbers[2])) < _OLDEST_RAY:
        what += f"; the package needs {'.'.join(map(str, _OLDEST_RAY))} or later"
        mend = f"pip install 'ray[default]=={own}' on the cluster's machines, and restart it"
        return Finding("problem", what, mend)
    what += "; submit works, `run --address` wants the same"
    return Finding("warning", what, f"{PIP} install 'ray[default]=={cluster}'")
