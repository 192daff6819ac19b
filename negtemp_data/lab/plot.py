"""Plots of measurements: a judge's scores by kind of sample, the recovery from injections."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from negtemp_data.errors import RequestError, RunError
from negtemp_data.lab.recovery import RecoveryReport


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


def check_plot(path: Path) -> None:
    """Refuses a plot that could not be written.

    Raises:
        RequestError: matplotlib is not installed, or has no format of this ending.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase  # noqa: PLC0415
    except ImportError as error:
        raise RequestError(f"--plot {path}: needs matplotlib: pip install matplotlib.") from error
    endings = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix[1:] not in endings:
        raise RequestError(f"--plot {path}: must end in one of {', '.join(endings)}.")


def plot_recovery(report: RecoveryReport, path: Path) -> None:
    """Draws each arm's excess surprise with its interval.

    Raises:
        RunError: The file can't be written.
    """
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for arm, found in report.arms.items():
        ks = [point.k for point in found.points]
        (line,) = axes.plot(ks, [point.excess.value for point in found.points], label=arm)
        low = [point.excess.low for point in found.points]
        high = [point.excess.high for point in found.points]
        axes.fill_between(ks, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.axhline(0, color="black", linestyle="dashed", linewidth=1)
    axes.set_xlabel("tokens after an injection")
    axes.set_ylabel(f"surprise above {report.control}, nats")
    axes.legend()
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise RunError(f"--plot {path}: can't be written: {error.strerror}.") from error
    finally:
        pyplot.close(figure)
