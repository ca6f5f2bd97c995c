# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What is asked about a request before it is parsed: is it too much, and by which name did it come?"""

import json

import pytest

from transformers_valley.request_checks import MAX_BRACKETS, MAX_TEXT_BYTES, find_excess, host_name


LONG = "A" * (MAX_TEXT_BYTES + 1)


@pytest.mark.parametrize(
    "content",
    [
        {"image_url": {"url": f"data:image/png;base64,{LONG}"}},
        [{"source": {"type": "base64", "media_type": "image/png", "data": LONG}}] * 3,
        [{"data": "AAAA"}, {"database": 1, "data": LONG}, {"url": f"data:image/png;base64,{LONG}"}],
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_pictures_and_clips_may_be_large(content, indent):
    assert find_excess(json.dumps(content, indent=indent).encode()) is None


@pytest.mark.parametrize("content", [{"text": LONG}, {"database": LONG}, {"data": {"text": LONG}}, LONG])
def test_texts_may_not(content):
    assert "beside those of its data: URLs" in find_excess(json.dumps(content).encode())


def test_objects_and_lists_are_counted():
    assert find_excess(b"[" * MAX_BRACKETS) is None
    assert "brackets; the limit is" in find_excess(b"[{" * MAX_BRACKETS)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("Models.Example.Org", "models.example.org"),
        ("localhost:8000", "localhost"),
        ("[::1]:8000", "::1"),
        ("fe80::1", "fe80::1"),
        ("", ""),
        ("[::1", "[::1"),
    ],
)
def test_names_are_compared_without_port_and_in_small_letters(address, name):
    assert host_name(address) == name
