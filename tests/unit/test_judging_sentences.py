"""Sentences, their orders, and what a judge of the order asks and concludes."""

import asyncio
from concurrent.futures import Future
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from negtemp_data.engine.tokens import PromptEncoder
from negtemp_data.jobspec import LikelihoodJudgeConfig
from negtemp_data.judging import Judgement, Sample
from negtemp_data.judging.asking import Question
from negtemp_data.judging.likelihood import LikelihoodJudge, LikelihoodReader
from negtemp_data.judging.sentences import (
    ends_with_sentence,
    other_orders,
    reorder,
    split_sentences,
)
from test_engine import make_tokenizer

TEXT = "The sea is wide. It is deep, too!\nFish live there. Who knows how many?"
texts = st.text(alphabet="ab .!?\n\"'。”", max_size=60)


def test_sentences_join_to_the_text() -> None:
    assert split_sentences(TEXT) == [
        "The sea is wide. ", "It is deep, too!\n", "Fish live there. ", "Who knows how many?",
    ]  # fmt: skip
    assert split_sentences("海很大。它很深！“真的？”是。") == [
        "海很大。",
        "它很深！",
        "“真的？”",
        "是。",
    ]
    assert split_sentences("\n\nOne alone.") == ["\n\nOne alone."]


@given(texts)
def test_no_character_is_lost_between_sentences(text: str) -> None:
    parts = split_sentences(text)
    assert "".join(parts) == text
    if text.strip():
        assert all(part.strip() for part in parts[:-1])


def test_a_point_within_a_word_ends_no_sentence() -> None:
    assert split_sentences("It costs 3.5 units. Or v1.2.3!") == [
        "It costs 3.5 units. ",
        "Or v1.2.3!",
    ]


@pytest.mark.parametrize("text", ["Yes.", 'He said: "Yes!" ', "(**Why?**)\n", "是。」"])
def test_a_finished_sentence_ends_as_one_does(text: str) -> None:
    assert ends_with_sentence(text)
    assert not ends_with_sentence(f"{text} And")


@given(texts.filter(str.strip), st.data())
def test_spans_move_with_their_characters(text: str, data: st.DataObject) -> None:
    """The characters within spans are the same before and after, sentence by sentence."""
    parts = split_sentences(text)
    order = data.draw(st.permutations(range(len(parts))))
    places = st.integers(0, len(text))
    spans = [(min(pair), max(pair)) for pair in data.draw(st.lists(st.tuples(places, places)))]
    moved = reorder(parts, order, spans)
    padded = moved.text + " " * len(text)
    after = sorted("".join(padded[begin:end] for begin, end in moved.spans))
    assert [c for c in after if not c.isspace()] == sorted(
        c for begin, end in spans for c in text[begin:end] if not c.isspace()
    )
    assert sorted(moved.text.split()) == sorted(" ".join(parts).split())


@given(st.integers(0, 40))
def test_other_orders_are_others_and_all_different(n: int) -> None:
    orders = other_orders(n, 4)
    assert len(orders) == min(4, {0: 0, 1: 0, 2: 1}.get(n, 4))
    assert len({tuple(order) for order in orders}) == len(orders)
    assert all(sorted(order) == list(range(n)) != order for order in orders)
    assert orders == other_orders(n, 4)


class PairEngine:
    """A model to which a token is as probable as the one before it says."""

    max_model_len = 4096

    def __init__(self) -> None:
        self.tokenizer = make_tokenizer(None)
        self.questions: list[Question] = []

    def logprob(self, before: int, token: int) -> float:
        return -1.0 - (31 * before + 7 * token) % 13

    def submit(self, question: Question) -> "Future[Any]":
        self.questions.append(question)
        ids = question.prompt_token_ids
        logprobs = [0.0, *(self.logprob(before, token) for before, token in pairwise(ids))]
        future: Future[Any] = Future()
        future.set_result(SimpleNamespace(prompt_logprobs=np.array(logprobs, np.float32)))
        return future


def judge_order(engine: PairEngine, completion: str, injected: Any = ()) -> Judgement | None:
    config = LikelihoodJudgeConfig(
        kind="likelihood", measure="order", model="org/other", accept_at=0
    )
    encoder = PromptEncoder(engine.tokenizer, engine.max_model_len - 1)
    judge = LikelihoodJudge(config, LikelihoodReader(engine, encoder), engine.tokenizer)
    ids = engine.tokenizer.encode(completion)
    sample = Sample("Why?", completion, ids, np.zeros(len(ids), np.float32), injected)
    return asyncio.run(judge.judge(sample))


def total(engine: PairEngine, text: str, left_out: range) -> float:
    """Log-probability of a text behind the request, without some of its characters."""
    request, ids = engine.tokenizer.encode("Why?\n\n"), engine.tokenizer.encode(text)
    pairs = list(pairwise([request[-1], *ids]))
    return sum(engine.logprob(*pair) for i, pair in enumerate(pairs) if i not in left_out)


def test_the_order_s_score_is_the_gain_per_sentence_over_other_orders() -> None:
    engine = PairEngine()
    found = judge_order(engine, "Eat. Now go.", injected=[6, 7])
    own = total(engine, "Eat. Now go.", range(6, 8))
    other = total(engine, "Now go. Eat.", range(1, 3))
    assert found is not None and found.score == pytest.approx((own - other) / 2)
    assert [part.criterion for part in found.scores] == ["order"]
    assert found.accepted == (own >= other)


def test_two_other_orders_are_read() -> None:
    engine = PairEngine()
    assert judge_order(engine, TEXT) is not None
    asked = [engine.tokenizer.decode(each.prompt_token_ids) for each in engine.questions]
    assert len(set(asked)) == 3 and TEXT in asked[0]
    assert all(part.strip() in text for part in split_sentences(TEXT) for text in asked)


@pytest.mark.parametrize("text", ["", "One sentence.", "no end", "\n\nOne line\n\n"])
def test_of_one_sentence_the_order_says_nothing(text: str) -> None:
    assert judge_order(PairEngine(), text) is None


def test_judges_that_share_a_reader_read_each_text_once() -> None:
    engine = PairEngine()
    reader = LikelihoodReader(engine, PromptEncoder(engine.tokenizer, engine.max_model_len - 1))
    configs = [
        LikelihoodJudgeConfig(kind="likelihood", measure=measure, model="org/other", accept_at=0)
        for measure in ("request", "end", "order")
    ]
    judges = [LikelihoodJudge(config, reader, engine.tokenizer) for config in configs]
    sample = Sample("Why?", TEXT, engine.tokenizer.encode(TEXT), np.zeros(70, np.float32), ())

    async def judge_all() -> list[Judgement | None]:
        return await asyncio.gather(*(judge.judge(sample) for judge in judges))

    together = asyncio.run(judge_all())
    assert len(engine.questions) == 4  # the text, to no request, in two other orders
    assert together == [asyncio.run(judge.judge(sample)) for judge in judges]
    assert len(engine.questions) == 4 + 2 + 1 + 3
