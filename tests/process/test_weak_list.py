"""`WeakList`: which elements are alive, whatever is added or dies meanwhile."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from valued._process.fork import WeakList


class Element:
    pass


class Cyclic:
    """Dies by the garbage collector only."""

    def __init__(self) -> None:
        self.itself = self


def test_an_element_is_held_weakly_and_leaves_nothing_behind() -> None:
    held: WeakList[Any] = WeakList()
    stays, goes, cyclic = Element(), Element(), Cyclic()
    for element in (stays, goes, cyclic):
        held.add(element)
    del element, goes
    assert held.living() == [stays, cyclic]
    del cyclic
    gc.collect()
    assert held.living() == [stays]
    assert len(held._references) == 1


def test_elements_are_listed_once_each_in_the_order_in_which_they_were_added() -> None:
    elements = [Element() for _ in range(5)]
    held: WeakList[Element] = WeakList()
    for element in (*elements, elements[0]):
        held.add(element)
    assert held.living() == elements


def test_the_list_of_the_living_is_a_copy_that_keeps_them_alive() -> None:
    held: WeakList[Element] = WeakList()
    held.add(element := Element())
    listed = held.living()
    del element
    assert held.living() == listed
    listed.clear()
    assert held.living() == []


def test_a_list_can_itself_be_held_weakly_and_may_die_before_its_elements() -> None:
    held: WeakList[Element] = WeakList()
    element = Element()
    held.add(element)
    seen = weakref.ref(held)
    del held
    gc.collect()
    assert seen() is None
    del element  # its reference is called back, if at all, without a list


def test_listing_while_other_threads_add_and_let_die_never_fails(
    in_thread: Callable[..., Future[Any]],
) -> None:
    held: WeakList[Any] = WeakList()
    stays = Element()
    held.add(stays)
    begin, done = threading.Barrier(4), threading.Event()

    def churn() -> None:
        begin.wait(10)
        for _ in range(5_000):
            held.add(Element())
            held.add(Cyclic())
        done.set()

    def look() -> int:
        begin.wait(10)
        looks = 0
        while not done.is_set() or not looks:
            assert stays in held.living()
            looks += 1
        return looks

    futures = [in_thread(churn), in_thread(churn), in_thread(look), in_thread(look)]
    for future in futures:
        future.result(30)
    gc.collect()
    assert held.living() == [stays]
