"""Large pages: who asks for them, and for which addresses."""

from __future__ import annotations

import sys

import pytest
import torch

from gatework.autograd import pages
from gatework.autograd.functions import Short, Torch


@pytest.fixture
def asked(monkeypatch):
    calls: list[tuple[int, int, int]] = []
    monkeypatch.setattr(pages, "_madvise", lambda: lambda *call: calls.append(call))
    return calls


@pytest.mark.parametrize("xp", [Torch(torch.empty(0)), Short(torch.device("cpu"))], ids=["float32", "bfloat16"])
def test_only_whole_large_pages_within_a_large_array_are_asked_for(xp, asked):
    a = xp.empty(9000, 1024, short=isinstance(xp, Short))
    (begin, size, advice), = asked
    assert begin % pages.PAGE == size % pages.PAGE == 0
    assert size > 0
    assert a.data_ptr() <= begin
    assert begin + size <= a.data_ptr() + a.untyped_storage().nbytes()
    assert advice == 14


def test_small_arrays_ask_for_nothing(asked):
    Torch(torch.empty(0)).empty(1000, 1000)
    assert asked == []


@pytest.mark.skipif(sys.platform != "linux", reason="the call is Linux's")
def test_linux_takes_the_advice_or_has_no_large_pages():
    a = pages.in_large_pages(torch.empty(1 << 22))
    begin = -(-a.data_ptr() // pages.PAGE) * pages.PAGE
    assert pages._madvise()(begin, pages.PAGE, pages.ADVICE) in (0, -1)
    a.fill_(1.0)
    assert a.sum().item() == 1 << 22


def test_elsewhere_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(pages.sys, "platform", "darwin")
    pages._madvise.cache_clear()
    try:
        assert pages._madvise() is None
        assert pages.in_large_pages(torch.empty(1 << 22)).shape == (1 << 22,)
    finally:
        pages._madvise.cache_clear()
