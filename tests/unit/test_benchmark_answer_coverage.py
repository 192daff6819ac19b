"""The coverage benchmark takes a completion for the answer that a reader would see in it."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "answer_coverage.py"


@pytest.fixture(scope="module")
def coverage() -> Iterator[ModuleType]:
    """The script as a module, under a name that is not the coverage tool's."""
    spec = importlib.util.spec_from_file_location("benchmark_answer_coverage", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_first_name_counts_and_the_longest_of_those_that_begin_there(coverage):
    answers = coverage.AnswerList({"Sudan": "SD", "South Sudan": "SS", "Chad": "TD"})
    assert answers.find(" South Sudan, near Chad.") == ("SS", True)
    assert answers.find(" Chad, near South Sudan.") == ("TD", True)
    assert answers.find(" either Sudan or Chad") == ("SD", False)


@pytest.mark.parametrize("text", ["Côte d’Ivoire.", "COTE D'IVOIRE", "**Co\u0302te d'Ivoire**"])
def test_case_accents_and_punctuation_do_not_matter(coverage, text):
    assert coverage.AnswerList({"Côte d'Ivoire": "CI"}).find(text) == ("CI", True)


def test_parts_of_words_are_no_answers(coverage):
    answers = coverage.AnswerList({"Mali": "ML", "C": "C", "C++": "C++", "λ": "lambda"})
    assert answers.find(" Malian or Somali, Clang, aλ").member is None
    assert answers.find(" C++.").member == "C++"
    assert answers.find(" C.").member == "C"
    assert answers.find(" “λ”").member == "lambda"


def test_a_name_that_only_contains_a_member_is_wrong(coverage):
    answers = coverage.AnswerList({"Guinea": "GN", "Papua New Guinea": None})
    assert answers.find(" Papua New Guinea, or Guinea") == (None, True)
    assert answers.find(" Guinea").member == "GN"


def test_an_empty_completion_answers_nothing(coverage):
    assert coverage.AnswerList({"Mali": "ML"}).find("") == (None, False)


@pytest.mark.parametrize(
    ("what", "text", "member"),
    [
        ("country in Africa", " Madagascar.", "MG"),
        ("country in Africa", " Ivory Coast.", "CI"),
        ("country in Africa", " the Democratic Republic of the Congo.", "CD"),
        ("country in Africa", " Spain.", None),
        ("country in Africa", " Papua New Guinea.", None),
        ("country in Europe", " England.", "GB"),
        ("country in Europe", " Iceland.", "IS"),
        ("country in Europe", " Morocco.", None),
        ("country in Asia", " Turkey.", "TR"),
        ("country in Asia", " Vietnam.", "VN"),
        ("country in Asia", " Australia.", None),
        ("state of the USA", " West Virginia.", "West Virginia"),
        ("state of the USA", " Washington, D.C.", None),
        ("state of India", " Rajasthan.", "Rājasthān"),
        ("state of India", " Delhi.", None),
        ("county in Ireland", " County Mayo.", "Mayo"),
        ("county in Ireland", " Ulster.", None),
        ("province or territory of Canada", " Newfoundland.", "Newfoundland and Labrador"),
        ("month of the year", " Dec.", "December"),
        ("language", " Greek.", "el"),
        ("language", " Mandarin Chinese.", "zh"),
        ("programming language", " C#.", "C#"),
        ("colour", " Light Blue.", "#add8e6"),
        ("colour", " gray", "#808080"),
        ("Greek letter", " λ", "LAMDA"),
        ("Greek letter", " lambda", "LAMDA"),
        ("built-in exception of Python", "IOError", "OSError"),
        ("built-in exception of Python", "fatal_exception", None),
        ("built-in exception of Python", "TypeError: can't", "TypeError"),
        ("image file format", " JPG.", "JPEG"),
        ("image file format", " .jpeg", "JPEG"),
        ("module of Python's standard library", "os.path", "os"),
        ("module of Python's standard library", "numpy", None),
        ("module of Python's standard library", "f-string", None),
    ],
)
def test_the_lists_hold_what_their_question_asks_for(questions, what, text, member):
    assert questions[what].read(text).member == member


@pytest.fixture(scope="module")
def questions(coverage):
    return {question.what: question for question in coverage.questions()}


def test_every_member_of_a_list_is_found_by_one_of_its_names(questions):
    for what, question in questions.items():
        answers = question.answers
        found = {answers.find(name).member for name in answers.names} - {None}
        assert len(found) == answers.size, what
        assert "" not in answers.names, what


def test_distinct_answers_are_counted_in_each_group_and_wrong_ones_left_out(coverage):
    # Of the first four siblings: two different answers in the first group, one in each other.
    members = [None] * sum(coverage.GROUPS)
    members[:5] = ["a", "b", "a", None, "c"]
    for start in (64, 80, 84):
        members[start : start + 2] = ["a", "a"]
    assert coverage.n_distinct(members, 4) == (2 + 1 + 1 + 1) / 4
    assert coverage.n_distinct(members, 8) == (3 + 1) / 2
    assert coverage.n_distinct(members, 64) == 3


def test_groups_are_cut_to_the_first_k_of_those_that_have_as_many(coverage):
    samples = list(range(sum(coverage.GROUPS)))
    assert coverage.in_groups(samples, 16) == [samples[:16], samples[64:80]]
    assert [group[0] for group in coverage.in_groups(samples, 4)] == [0, 64, 80, 84]
