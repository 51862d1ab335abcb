"""The support of the tests keeps its promises too."""

from __future__ import annotations

import os

import pytest

from tests.support import descriptors, descriptors_unchanged, require, wait_until


def test_a_requirement_that_is_met_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTIBINDER_REQUIRE", "haproxy")
    require("haproxy", True, "not reached")


@pytest.mark.parametrize("required", [None, "", "root", "haproxy2"])
def test_a_missing_tool_is_a_skip_with_its_reason(monkeypatch: pytest.MonkeyPatch, required: str | None) -> None:
    monkeypatch.delenv("MULTIBINDER_REQUIRE", raising=False)
    if required is not None:
        monkeypatch.setenv("MULTIBINDER_REQUIRE", required)
    with pytest.raises(pytest.skip.Exception, match="there is no haproxy here"):
        require("haproxy", None, "there is no haproxy here")


@pytest.mark.parametrize("required", ["haproxy", "root,haproxy", "root, haproxy"])
def test_a_missing_tool_is_an_error_where_it_is_required(monkeypatch: pytest.MonkeyPatch, required: str) -> None:
    monkeypatch.setenv("MULTIBINDER_REQUIRE", required)
    with pytest.raises(pytest.fail.Exception, match="MULTIBINDER_REQUIRE names haproxy: there is no haproxy here"):
        require("haproxy", None, "there is no haproxy here")


def test_waiting_returns_the_result_of_the_condition() -> None:
    answers = iter(["", "", "here"])
    assert wait_until(lambda: next(answers), "it came") == "here"


def test_waiting_past_the_deadline_fails_with_the_promise_and_the_log() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"not within 0\.05 s: it came\nthe log"):
        wait_until(lambda: None, "it came", log=lambda: "the log", timeout_s=0.05)


def test_a_descriptor_that_is_left_open_is_noticed() -> None:
    def leak() -> int:
        with descriptors_unchanged():
            return os.dup(0)

    before = descriptors()
    with pytest.raises(AssertionError):
        leak()
    [leaked] = descriptors().keys() - before.keys()
    os.close(leaked)
