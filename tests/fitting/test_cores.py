"""Spreading work over the cores: everything is done, at the same time, and errors come out."""

import threading

import pytest

from edgekit.fitting import cores


def test_every_item_is_worked_on_once() -> None:
    done: list[int] = []
    cores.each(done.append, range(1000))
    assert sorted(done) == list(range(1000))
    cores.each(done.append, [])
    assert len(done) == 1000


def test_as_many_are_worked_on_at_a_time_as_there_are_cores() -> None:
    # Each waits for all others: with one thread fewer this would end in BrokenBarrierError.
    meeting = threading.Barrier(cores.COUNT, timeout=20)
    cores.each(lambda _item: meeting.wait(), range(cores.COUNT))


def test_the_first_error_is_raised_and_the_threads_live_on() -> None:
    def work(item: int) -> None:
        if item in (3, 700):
            raise ZeroDivisionError(item)

    with pytest.raises(ZeroDivisionError, match=r"^3$"):
        cores.each(work, range(1000))
    test_every_item_is_worked_on_once()
    test_as_many_are_worked_on_at_a_time_as_there_are_cores()


def test_an_error_of_the_last_item_is_not_lost() -> None:
    def work(item: int) -> None:
        if item == 99:
            raise KeyError(item)

    with pytest.raises(KeyError):
        cores.each(work, range(100))
