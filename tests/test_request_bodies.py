# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What is too much for one request, told before it is parsed."""

import json

import pytest

from transformers_valley.request_bodies import MAX_BRACKETS, MAX_TEXT_BYTES, find_excess


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
