"""Descriptors of ours with high numbers, while other code closes numbers that it doesn't know."""

from __future__ import annotations

import fcntl
import os
import socket
from typing import Any

import pytest

from valued._process.descriptors import HIGH, identity, move_up, new_socket


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Right after a number was copied, other code closes it and opens something: what has it."""
    real, opened = fcntl.fcntl, []

    def copy_and_replace(number: int, command: int, *arguments: Any) -> int:
        high: int = real(number, command, *arguments)
        if command == fcntl.F_DUPFD_CLOEXEC:
            os.close(number)
            opened.append(os.open(os.devnull, os.O_RDONLY))
        return high

    monkeypatch.setattr(fcntl, "fcntl", copy_and_replace)
    return opened


def test_a_number_that_something_else_has_by_then_is_left_open(replaced: list[int]) -> None:
    low = os.open(os.devnull, os.O_RDONLY)
    os.close(low)
    with new_socket(socket.AF_INET, socket.SOCK_STREAM) as made:
        assert made.fileno() >= HIGH
        assert replaced == [low]
        assert identity(low) is not None
    os.close(low)


def test_a_file_is_moved_without_closing_what_has_its_number(replaced: list[int]) -> None:
    read, write = os.pipe()
    high = move_up(read)
    assert high >= HIGH
    assert replaced == [read]
    assert identity(read) is not None
    for number in (read, write, high):
        os.close(number)
