"""The plot of a judge's measurement: how its scores are distributed by kind of sample."""

from collections.abc import Mapping, Sequence
from pathlib import Path


def plot_scores(scores: Mapping[str, Sequence[float]], path: Path, accept_at: float | None) -> bool:
    """Draws one violin a kind into a PNG file; False where matplotlib is not installed."""
    try:
        import matplotlib as mpl  # noqa: PLC0415
    except ImportError:
        return False
    mpl.use("agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(figsize=(8, 0.6 * len(scores) + 1.2), layout="constrained")
    kinds = list(scores)[::-1]
    axes.violinplot([scores[kind] for kind in kinds], orientation="horizontal", showmedians=True)
    axes.set_yticks(range(1, len(kinds) + 1), kinds)
    axes.set_xlabel("score")
    if accept_at is not None:
        axes.axvline(accept_at, color="black", linestyle="dashed", linewidth=1)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True
