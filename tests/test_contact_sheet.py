# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Sheets are read back: which numbered frame stands in which cell, and whether there is ink below it."""

import numpy as np
import pytest
import torch
from clips import numbered_frame, read_number
from PIL import Image

from transformers_valley.contact_sheet import BACKGROUND, MAX_SIDE, clock, draw_contact_sheet, shrink
from transformers_valley.video_decoding import SampledVideo, sample_video


def sampled(count: int, width: int = 160, height: int = 96, times: list[float] | None = None) -> SampledVideo:
    """Frames number 1, 2, ...: number 0 has no white bar."""
    frames = np.stack([numbered_frame(i + 1, width, height) for i in range(count)])
    return SampledVideo(torch.from_numpy(frames).permute(0, 3, 1, 2), times or [float(i) for i in range(count)])


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """(begin, end) of every run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]


def read_sheet(sheet: Image.Image) -> tuple[list[list[np.ndarray]], list[list[np.ndarray]]]:
    """The pictures and the captions of each row, cut out of the sheet."""
    pixels = np.asarray(sheet)
    ink = (pixels != BACKGROUND).any(axis=2)
    bands = runs(ink.any(axis=1))  # by turns a row of pictures and a row of captions
    pictures, captions = [], []
    for (top, bottom), (text_top, text_bottom) in zip(bands[::2], bands[1::2], strict=True):
        across = runs(ink[top])
        pictures.append([pixels[top:bottom, left:right] for left, right in across])
        captions.append([ink[text_top:text_bottom, left:right] for left, right in across])
    return pictures, captions


def test_frames_stand_in_order_row_by_row():
    pictures, _ = read_sheet(draw_contact_sheet(sampled(7), columns=3))
    numbers = [[read_number(picture.transpose(2, 0, 1)) for picture in row] for row in pictures]
    assert numbers == [[1, 2, 3], [4, 5, 6], [7]]


def test_every_frame_has_ink_below_it():
    _, captions = read_sheet(draw_contact_sheet(sampled(7), columns=3))
    assert [len(row) for row in captions] == [3, 3, 1]
    assert all(caption.sum() > 50 for row in captions for caption in row)


def test_times_are_written_below_frames():
    times = [0.0, 0.0, 71.5]
    ((first, second, third),) = read_sheet(draw_contact_sheet(sampled(3, times=times), columns=3))[1]
    assert (first == second).all() and (first != third).any()


def test_numbers_stand_where_there_are_no_times():
    video = sample_video([numbered_frame(i) for i in (1, 2, 3)])
    assert video.timestamps is None
    pictures, captions = read_sheet(draw_contact_sheet(video, columns=3))
    assert [read_number(picture.transpose(2, 0, 1)) for picture in pictures[0]] == [1, 2, 3]
    narrow = [caption.any(axis=0).nonzero()[0] for caption in captions[0]]
    assert all(0 < columns[-1] - columns[0] < 30 for columns in narrow)  # "#1" is narrower than "0:00.0"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00.0"),
        (2, "0:02.0"),
        (59.96, "1:00.0"),
        (754.25, "12:34.2"),
        (3600, "1:00:00.0"),
        (36610.1, "10:10:10.1"),
    ],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_clock_writes_more_decimals():
    assert clock(3599.999, 3) == "59:59.999"
    assert clock(3599.999, 2) == "1:00:00.00"


def test_times_of_neighbours_can_be_told_apart():
    rows = read_sheet(draw_contact_sheet(sampled(2, times=[0.0, 0.04]), columns=2))[1]
    assert (rows[0][0] != rows[0][1]).any()


def test_frames_keep_their_aspect():
    for width, height in ((1600, 400), (400, 1600), (320, 240), (20, 12)):
        pictures, _ = read_sheet(draw_contact_sheet(sampled(4, width, height)))
        for picture in (picture for row in pictures for picture in row):
            assert picture.shape[1] / picture.shape[0] == pytest.approx(width / height, rel=0.05)


def test_small_frames_grow_and_others_do_not():
    assert read_sheet(draw_contact_sheet(sampled(1, 40, 24)))[0][0][0].shape == (96, 160, 3)
    assert read_sheet(draw_contact_sheet(sampled(1, 320, 192)))[0][0][0].shape == (192, 320, 3)


def test_spacing_is_even():
    pixels = np.asarray(draw_contact_sheet(sampled(9), columns=3))
    ink = (pixels != BACKGROUND).any(axis=2)
    rows, across = runs(ink.any(axis=1))[::2], runs(ink[20])
    for cells, end in ((rows, None), (across, pixels.shape[1])):
        assert len({second[0] - first[0] for first, second in zip(cells, cells[1:], strict=False)}) == 1
        assert cells[0][0] == 16 and (end is None or end - cells[-1][1] == 16)


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (4, 2), (8, 4), (9, 3), (64, 8)])
def test_columns_make_about_a_square(count, columns):
    sheet = draw_contact_sheet(sampled(count, 320, 180))
    assert len(read_sheet(sheet)[0][0]) == columns


def test_no_more_columns_than_frames():
    assert draw_contact_sheet(sampled(2), columns=50).size == draw_contact_sheet(sampled(2), columns=2).size


@pytest.mark.parametrize("count", [1, 65, 300, 1000])
@pytest.mark.parametrize("shape", [(32, 18), (18, 32), (2, 100), (100, 2), (1, 1)])
def test_sheet_stays_within_bounds(count, shape):
    width, height = shape
    times = [35_900 + i * 1.5 for i in range(count)]
    video = SampledVideo(torch.zeros(count, 3, height, width, dtype=torch.uint8), times)
    sheet = draw_contact_sheet(video)
    assert sheet.width <= 1280 and sheet.height <= max(4 * 1280, sheet.width)


def test_hundreds_of_frames_are_all_there():
    pictures, captions = read_sheet(draw_contact_sheet(sampled(300, 160, 90)))
    numbers = [read_number(picture.transpose(2, 0, 1)) for row in pictures for picture in row]
    assert numbers == list(range(1, 301))
    assert all(caption.any() for row in captions for caption in row)


def test_one_long_column_gets_smaller_frames():
    sheet = draw_contact_sheet(sampled(200, 320, 180), columns=1)
    assert sheet.height <= MAX_SIDE
    assert len(read_sheet(sheet)[0]) == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": 0}, "columns must be at least 1, found 0"),
        ({"width": 0}, "width must be from 1 to 16000 pixels, found 0"),
        ({"width": 20_000}, "width must be from 1 to 16000 pixels, found 20000"),
        ({"width": 40}, "3 frames do not fit on a sheet 40 pixels wide"),
        ({"width": 100, "columns": 3}, "3 frames in 3 columns do not fit .* another number of columns"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw_contact_sheet(sampled(3), **options)


def test_a_thousand_frames_do_not_fit_in_one_column():
    with pytest.raises(ValueError, match="1000 frames in 1 columns do not fit"):
        draw_contact_sheet(sampled(1000, 16, 9), columns=1)


def test_no_frames_are_refused():
    with pytest.raises(ValueError, match="no frames"):
        draw_contact_sheet(SampledVideo(torch.zeros(0, 3, 4, 4, dtype=torch.uint8), []))


def test_shrink_keeps_the_aspect_and_the_content():
    frame = torch.from_numpy(numbered_frame(77, 640, 384)).permute(2, 0, 1)
    small = shrink(frame, 160 * 96)
    assert small.shape == (3, 96, 160) and small.dtype == torch.uint8
    assert read_number(small) == 77
    assert shrink(frame, 640 * 384) is frame
