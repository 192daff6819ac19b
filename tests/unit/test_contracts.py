"""What every part promises: errors pickle, names exist, importing is cheap."""

import importlib
import inspect
import pickle
import pkgutil
import re
import subprocess
import sys

import pytest

import negtemp_data
from negtemp_data import errors
from negtemp_data.errors import QUOTE_CHARS, NegtempError, RequestError, RowError, RunError, quote

ERRORS = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if issubclass(value, NegtempError)
]

PACKAGES = [
    module.name
    for module in pkgutil.walk_packages(negtemp_data.__path__, "negtemp_data.")
    if module.ispkg
]


@pytest.mark.parametrize("error_class", ERRORS)
def test_errors_pickle_with_class_and_message(error_class: type[NegtempError]) -> None:
    error = error_class("what, where, what to do")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is error_class
    assert str(copy) == "what, where, what to do"


@pytest.mark.parametrize("error_class", ERRORS)
def test_scope_and_exit_code_follow_from_the_base(error_class: type[NegtempError]) -> None:
    assert error_class.exit_code == (2 if issubclass(error_class, RequestError) else 1)
    if issubclass(error_class, RowError):
        assert error_class.scope == "row"
    elif issubclass(error_class, RequestError | RunError):
        assert error_class.scope == "run"


def test_the_tree_of_errors_names_exactly_the_classes() -> None:
    named = re.findall(r"^[\s│├└─]*(\w*Error)\b", errors.__doc__ or "", flags=re.MULTILINE)
    assert sorted(named) == sorted(error_class.__name__ for error_class in ERRORS)


@pytest.mark.parametrize("value", ["a\nb\x1b[31m", "x" * 10_000, None, {"a": "\u202e"}])
def test_quoted_values_are_one_short_line_without_control_characters(value: object) -> None:
    text = quote(value)
    assert len(text) <= QUOTE_CHARS
    assert text.isprintable()


@pytest.mark.parametrize("name", PACKAGES)
def test_all_names_that_a_package_exports_exist(name: str) -> None:
    package = importlib.import_module(name)
    exported = getattr(package, "__all__", [])
    assert len(set(exported)) == len(exported)
    assert [entry for entry in exported if not hasattr(package, entry)] == []


@pytest.mark.parametrize(
    "name",
    [
        "negtemp_data",
        "negtemp_data.export",
        "negtemp_data.jobspec",
        "negtemp_data.judging",
        "negtemp_data.storage",
    ],
)
def test_importing_loads_nothing_heavy(name: str) -> None:
    code = (
        f"import sys, {name}\n"
        "heavy = {'torch', 'ray', 'vllm', 'transformers', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_sampler_needs_nothing_but_torch_and_numpy() -> None:
    code = (
        "import sys\n"
        "blocked = {'vllm', 'ray', 'pydantic', 'regex', 'transformers'}\n"
        "class Blocker:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] in blocked:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "import negtemp_data.sampling\n"
        "ours = [name for name in sys.modules if name.startswith('negtemp_data.')]\n"
        "loaded = {name.split('.')[1] for name in ours}\n"
        "assert loaded == {'sampling'}, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
