# ruff: noqa: T201, TID251, TID253
# A script, which may print, and whose only work needs torch and transformers.
"""Draws the figures of docs/sampling.md into docs/images, and prints what the page quotes.

    pip install 'negtemp-data[cpu,docs]'
    python docs/plots.py                # a few minutes on two cores

Logits come from the embedded model in float32, everything else from `negtemp_data.sampling`.

Shapes: R rows of logits, V vocabulary.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, PercentFormatter
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from negtemp_data.engine.catalogue import resolve_model
from negtemp_data.engine.token_classes import token_table
from negtemp_data.sampling import (
    AnnealedTemperature,
    Injection,
    PeriodicTrigger,
    Piece,
    Rule,
    Schedule,
    ScheduleSampler,
    Support,
    TokenTable,
    Vocabulary,
    temperature_table,
)

IMAGES = Path(__file__).parent / "images"
PROMPTS = Path(__file__).parents[1] / "jobs" / "prompts" / "quickstart.jsonl"

STEP_PROMPT = "What can I do to fall asleep more easily?"
STEP_ANSWER = "Before you go to bed, drink a cup of"
"""One step with many plausible tokens: the answer as far as it has come."""
STEP_SUPPORT = Support(min_p=0.02)
STEP_TEMPERATURES = (-0.1, -0.5, -1.0, np.inf, 2.0, 1.0, 0.7)
"""From the far end of the negative side down, which is in order of β."""

N_TEXTS, N_TOKENS, BASE_TEMPERATURE = 8, 48, 0.8
"""Texts that the model writes for the ranks, tokens of each, and how it samples them."""
N_DRAWS = 8
"""Injections tried at each position, each with a seed of its own."""
RANK_SUPPORT = Support(min_p=0.05)
UNRESTRICTED = "T = −1, unrestricted"
RANK_RULES = {
    "T = −1": (-1.0, RANK_SUPPORT),
    "T = ±inf": (np.inf, RANK_SUPPORT),
    "T = 1": (1.0, RANK_SUPPORT),
    UNRESTRICTED: (-1.0, Support()),
}
N_SHOWN_RANKS = 8

# Of the palette of Okabe and Ito, which colour-blind readers can tell apart, and a grey.
ORANGE, BLUE, GREEN, PINK, GREY = "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#666666"
RANK_STYLES = {
    "T = −1": (ORANGE, "-"),
    "T = ±inf": (GREY, "--"),
    "T = 1": (BLUE, "-."),
    UNRESTRICTED: (PINK, ":"),
}

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "negtemp-data",  # else the ids in the files differ from run to run
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "legend.frameon": False,
}


class Writer:
    """The embedded model, as far as the figures need it."""

    def __init__(self) -> None:
        """Loads model and tokenizer; the first use ever converts the model."""
        path = resolve_model("smollm2-135m-instruct", print).path
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path, padding_side="left")
        self._model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.tokens: TokenTable = token_table(self._tokenizer, path)

    def next_logits(self, prompt: str, answer: str) -> Tensor:
        """Logits [1, V] of the token that goes on with `answer`."""
        with torch.inference_mode():
            logits: Tensor = self._model(**self._encode([prompt], answer)).logits[:, -1]
        return logits

    def write(self, prompts: list[str]) -> Iterator[tuple[int, Tensor]]:
        """Writes an answer to each prompt; yields each position and the logits [R, V] there.

        Texts that are at their end have no row any more.
        """
        torch.manual_seed(0)
        written = self._model.generate(
            **self._encode(prompts),
            do_sample=True,
            temperature=BASE_TEMPERATURE,
            top_k=0,
            max_new_tokens=N_TOKENS,
            return_dict_in_generate=True,
            output_logits=True,
        )
        token_ids_RP = written.sequences[:, -len(written.logits) :]
        end = torch.tensor(sorted(self.tokens.eos_ids))
        n_ended_RP = torch.isin(token_ids_RP, end).cumsum(dim=1)
        for position, logits_RV in enumerate(written.logits):
            is_open_R = n_ended_RP[:, position - 1] == 0 if position else slice(None)
            yield position, logits_RV[is_open_R]

    def _encode(self, prompts: list[str], answer: str = "") -> Any:
        texts = [
            self._tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            for prompt in prompts
        ]
        return self._tokenizer(
            [text + answer for text in texts],
            add_special_tokens=False,
            padding=True,
            return_tensors="pt",
        )


# --- figure 1: probabilities on a support


def draw_temperatures(writer: Writer) -> None:
    """One panel for each T: the probability of each token of the support."""
    z_RV = writer.next_logits(STEP_PROMPT, STEP_ANSWER)
    p_RV = z_RV.softmax(dim=1)
    chances = [_chances(writer.tokens, z_RV, t) for t in STEP_TEMPERATURES]
    support = np.flatnonzero(chances[0])
    support = support[np.argsort(-z_RV[0, support].numpy(), kind="stable")]
    labels = [_label(writer.tokens.texts[i]) for i in support]
    print(f"{STEP_ANSWER!r}: {len(support)} candidates, p(T = 1 on everything) as percent:")
    print(", ".join(f"{x} {p_RV[0, i]:.1%}" for x, i in zip(labels, support, strict=True)))

    figure, axes = plt.subplots(
        1, len(STEP_TEMPERATURES), sharey=True, figsize=(10, 4.2), layout="constrained"
    )
    places = np.arange(len(support))
    for axis, temperature, chance_V in zip(axes, STEP_TEMPERATURES, chances, strict=True):
        share = chance_V[support]
        print(f"T = {temperature:g}: " + " ".join(f"{x:.1%}" for x in share))
        axis.barh(places, share, color=_colour(temperature), height=0.75)
        for place, x in zip(places, share, strict=True):
            axis.text(x + 0.02, place, _percent(x), va="center", fontsize=8)
        beta = 1 / temperature
        axis.set(title=f"T = {_number(temperature)}\nβ = {_number(beta)}", xlim=(0, 0.75))
        axis.set_xticks([0, 0.25, 0.5], ["0", "25", "50"])
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks(places, labels)
    axes[0].invert_yaxis()
    axes[0].set_ylabel("candidates, the most likely on top")
    figure.suptitle(f"“{STEP_ANSWER} …”: the next token, S = {{p ≥ 0.02 · p_max}}", fontsize=11)
    figure.supxlabel("probability on S, %", fontsize=10)
    _save(figure, "temperatures")


def _chances(tokens: TokenTable, z_RV: Tensor, temperature: float) -> NDArray[np.float64]:
    """What a base of this temperature samples from, [V]."""
    sampler = ScheduleSampler(tokens, z_RV.shape[1], z_RV.device)
    slot = sampler.open("step", Schedule(base=(Piece(temperature, support=STEP_SUPPORT),)), seed=0)
    y_RV = z_RV.clone()
    sampler.step(y_RV, np.array([0]), np.array([slot]), np.array([0]), lambda _: torch.zeros(1))
    chance_V: NDArray[np.float64] = y_RV[0].double().softmax(dim=0).numpy()
    return chance_V


def _label(text: bytes) -> str:
    return text.decode(errors="replace").replace(" ", "␣", 1)


def _colour(temperature: float) -> str:
    if np.isinf(temperature):
        return GREY
    return ORANGE if temperature < 0 else BLUE


def _number(x: float) -> str:
    if np.isinf(x):
        return "±inf"
    return f"{x:.3g}".replace("-", "−")


def _percent(x: float) -> str:
    if x < 0.0005:
        return "<0.1"
    return f"{100 * x:.1f}" if x < 0.0995 else f"{100 * x:.0f}"


# --- figure 2: ranks of injected tokens


def draw_ranks(writer: Writer) -> None:
    """Where injections land among all tokens: a histogram, and the share up to each rank."""
    ranks = _ranks(writer)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.9), layout="constrained")
    shown = [name for name in RANK_RULES if name != UNRESTRICTED]
    for k, name in enumerate(shown):
        counts = np.bincount(np.minimum(ranks[name], N_SHOWN_RANKS + 1))[1:] / len(ranks[name])
        places = np.arange(len(counts)) + (k - 1) * 0.27
        left.bar(places, counts, width=0.25, color=RANK_STYLES[name][0], label=name)
    left.set_xticks(
        range(N_SHOWN_RANKS + 1), [*map(str, range(1, N_SHOWN_RANKS + 1)), f">{N_SHOWN_RANKS}"]
    )
    left.grid(axis="x", visible=False)
    left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    left.set(
        title="on S = {p ≥ 0.05 · p_max}",
        xlabel="rank of the injected token (1 = most likely)",
        ylabel="injections, %",
    )
    left.legend()

    for name, (colour, dashes) in RANK_STYLES.items():
        values, repeats = np.unique(ranks[name], return_counts=True)
        share = np.cumsum(repeats) / repeats.sum()
        # A thousand steps are as good as ten thousand, and a tenth of the file.
        kept = np.unique(np.searchsorted(share, np.linspace(share[0], 1, 1000) - 1e-9))
        right.step(
            [values[0], *values[kept]],
            [0, *share[kept]],
            where="post",
            color=colour,
            linestyle=dashes,
            linewidth=2,
            label=name,
        )
    right.set_xscale("log")
    right.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    right.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    right.set(
        title="beside the whole vocabulary, on a logarithmic axis",
        xlabel=f"rank among all {len(writer.tokens.texts):,} tokens",
        ylabel="injections up to this rank, %",
        ylim=(0, 1.02),
    )
    right.legend(loc="center", bbox_to_anchor=(0.66, 0.4))
    _save(figure, "ranks")


def _ranks(writer: Writer) -> dict[str, NDArray[np.int64]]:
    """Recorded ranks of the injections of each rule at every position of the model's texts."""
    with PROMPTS.open(encoding="utf-8") as lines:
        prompts = [json.loads(line)["prompt"] for line in islice(lines, N_TEXTS)]
    injections: dict[str, list[Injection]] = {name: [] for name in RANK_RULES}
    n_rows = 0
    for position, z_RV in writer.write(prompts):
        n_rows += len(z_RV)
        for name, (temperature, support) in RANK_RULES.items():
            rule = Rule(
                PeriodicTrigger(1), temperature, support, Vocabulary(exclude=("special",)), defer=0
            )
            injections[name] += _inject(writer.tokens, z_RV, rule, position)
    print(f"{n_rows} positions of {len(prompts)} texts, {N_DRAWS} draws at each")
    for name, found in injections.items():
        ranks = np.array([injection.rank for injection in found])
        sizes = np.array([injection.support_size for injection in found])
        print(
            f"{name}: {len(found) / N_DRAWS:g} positions with |S| ≥ 2, median |S| "
            f"{np.median(sizes):g}; rank 1 {np.mean(ranks == 1):.1%}, rank of median "
            f"{np.median(ranks):g}, 90% {np.quantile(ranks, 0.9):g}, largest {ranks.max()}; "
            f"ln p of median {np.median([injection.logprob for injection in found]):.1f}"
        )
    return {
        name: np.array([injection.rank for injection in found], dtype=np.int64)
        for name, found in injections.items()
    }


def _inject(tokens: TokenTable, z_RV: Tensor, rule: Rule, position: int) -> Iterator[Injection]:
    """What `N_DRAWS` requests for each row inject at this position."""
    sampler = ScheduleSampler(tokens, z_RV.shape[1], z_RV.device)
    logits_RV = z_RV.repeat(N_DRAWS, 1)
    rows = np.arange(len(logits_RV))
    slots = [sampler.open(str(row), Schedule((rule,)), seed=int(row)) for row in rows]
    positions = np.full(len(rows), position)
    sampler.step(logits_RV, rows, np.array(slots), positions, lambda _: torch.zeros(0))
    for trace in sampler.take([str(row) for row in rows]).values():
        yield from trace.injections


# --- figure 3: temperatures that move


def draw_tracks() -> None:
    """T over positions of moving bases, and β where T changes its sign."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    n = np.arange(81)
    left.step(n, np.where(n < 8, 3.0, 0.5), where="post", color=GREY, lw=2, label="pieces")
    ways = (
        (AnnealedTemperature(1.5, 0.6, 64, "linear"), ORANGE, "-"),
        (AnnealedTemperature(1.5, 0.6, 64, "cosine"), BLUE, "--"),
        (AnnealedTemperature(1.5, 0.6, 64, "exponential"), GREEN, "-."),
    )
    for way, colour, dashes in ways:
        values = _at(temperature_table(way), n)
        left.plot(n, values, color=colour, linestyle=dashes, lw=2, label=f"anneal, {way.shape}")
    left.set(
        title="pieces: 3 until 8, then 0.5; anneal: 1.5 to 0.6 over 64",
        xlabel="position (generated tokens)",
        ylabel="temperature T",
        xlim=(0, 80),
        ylim=(0, 3.2),
    )
    left.legend()

    beta = 1 / _at(temperature_table(AnnealedTemperature(-1.0, 0.7, 64, "linear")), n)
    right.plot(n, beta, color=ORANGE, lw=2)
    right.set(
        title="anneal: −1 to 0.7 over 64, linear in β",
        xlabel="position (generated tokens)",
        ylabel="β = 1/T",
        xlim=(0, 80),
        ylim=(-1.2, 1.6),
    )
    marked = np.array([-1.0, -2.0, np.inf, 2.0, 1.0, 0.7])
    twin = right.twinx()
    twin.set(ylim=right.get_ylim(), ylabel="temperature T")
    twin.set_yticks(1 / marked, [_number(t) for t in marked])
    twin.grid(visible=False)
    twin.spines["right"].set_visible(True)
    right.axhline(0, color=GREY, lw=1)
    _save(figure, "tracks")


def _at(table: list[float], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Temperatures at these positions; the last of the table holds on."""
    return np.array([table[min(n, len(table) - 1)] for n in positions.tolist()])


def _save(figure: Any, name: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    # No date and no version, so that the same figure is the same file.
    figure.savefig(IMAGES / f"{name}.svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)


def main() -> None:
    """Draws all of them."""
    mpl.use("Agg")
    mpl.rcParams.update(STYLE)
    draw_tracks()
    writer = Writer()
    draw_temperatures(writer)
    draw_ranks(writer)


if __name__ == "__main__":
    main()
