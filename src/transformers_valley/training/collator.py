# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Rows to batches: clips are decoded here, bad rows are named or replaced, long rows cut, batches padded or packed.

The processor encodes each row on its own, so that whatever goes wrong belongs to one row.
"""

import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, IterableDataset
from jinja2 import TemplateError
from pyarrow import compute
from transformers import DataCollatorWithFlattening
from trl import get_training_chat_template

from ..configuration_valley import SPECIAL_TOKENS
from ..data.decode import BadSampleError, messages_of
from ..data.lengths import check_max_length
from ..processing_valley import ValleyProcessor, join_visuals
from ..video_sources import VideoDecodeError
from .features import FeatureCache


logger = logging.getLogger(__name__)

MOST_WORKERS = 512  # of one process


class ValleyDataCollator:
    """
    Makes batches of rows of [`load_rows`](transformers_valley.data.load_rows), for `SFTTrainer(data_collator=…)`.

    A row is bad if a clip or an image of it cannot be read, it is longer than `max_length` after `on_long_row`, its
    text cannot be rendered, or nothing of it would be learnt. What is done then, `on_bad_sample` says:

    - `"raise"`: the first one ends the run.
    - `"skip"`: the next good row of `dataset` takes its place (index + 1, …, after the last the first), whichever
      process, worker and batch it is in. A row that `dataset` does not hold, such as one of a streamed data set or one
      of an evaluation, is replaced by the next good row of its batch. Each time is written to `bad_sample_file`.

    How many rows were read and how many were bad is counted per process of the launcher, over all its workers. The
    run ends where more are bad than `max_bad_share` and chance (three standard deviations) explain: the third of three
    rows, 13 of 100, 73 of 1000 or 569 of 10000 with the default of 0.05. It also ends where so many rows of `dataset`
    in a row are bad that its share must be higher.

    Args:
        processor ([`ValleyProcessor`]):
            Of the model.
        dataset (`datasets.Dataset`, *optional*):
            What replacements are taken from.
        max_length (`int`, *optional*):
            Longest row in tokens; longer ones are left to `on_long_row`.
        assistant_only_loss (`bool`, *optional*, defaults to `True`):
            Whether only the assistant's words are learnt, or all of the text. Visuals never are.
        on_bad_sample (`str`, *optional*, defaults to `"raise"`):
            `"raise"` or `"skip"`.
        bad_sample_file (`str`, *optional*):
            JSONL file to which `{"id", "source", "file", "reason", "replaced_by"}` is appended for each skipped row.
            Without it each is a warning.
        max_bad_share (`float`, *optional*, defaults to 0.05):
            Share of bad rows above which `"skip"` ends the run.
        on_long_row (`str`, *optional*, defaults to `"cut"`):
            `"cut"`: what goes beyond `max_length` is cut off the text after the last visual, never inside a visual.
            `"drop"`: the row is bad.
        padding_free (`bool`, *optional*, defaults to `False`):
            Join the rows of a batch into one instead of padding them, see below.
        pad_to_multiple_of (`int`, *optional*):
            Of the padded length.

    Attributes:
        features ([`FeatureCache`], *optional*):
            Where what the vision tower makes of visuals is read from instead of decoding them; set by
            [`cache_vision_features`].

    Raises:
        ValueError: if an argument makes no sense, `max_length` holds no visual, or too many rows are bad.
        BadSampleError: at a bad row. From a worker its message follows the worker's traceback.
    """

    def __init__(
        self,
        processor: ValleyProcessor,
        dataset: Dataset | IterableDataset | None = None,
        max_length: int | None = None,
        assistant_only_loss: bool = True,
        on_bad_sample: Literal["raise", "skip"] = "raise",
        bad_sample_file: str | os.PathLike | None = None,
        max_bad_share: float = 0.05,
        on_long_row: Literal["cut", "drop"] = "cut",
        padding_free: bool = False,
        pad_to_multiple_of: int | None = None,
    ):
        for name, value, known in (
            ("on_bad_sample", on_bad_sample, ("raise", "skip")),
            ("on_long_row", on_long_row, ("cut", "drop")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
        if not 0 < max_bad_share <= 1:
            raise ValueError(
                f"max_bad_share must be above 0 and at most 1, got {max_bad_share}. To stop at the first bad row, set "
                "on_bad_sample to raise."
            )
        if padding_free and pad_to_multiple_of is not None:
            raise ValueError(f"Packed batches have no padding, but pad_to_multiple_of={pad_to_multiple_of} is given.")
        check_max_length(max_length, processor)
        self.processor = processor
        self.dataset = dataset
        self.max_length = max_length
        self.on_bad_sample = on_bad_sample
        self.bad_sample_file = bad_sample_file
        self.max_bad_share = max_bad_share
        self.on_long_row = on_long_row
        self.padding_free = padding_free
        self.pad_to_multiple_of = pad_to_multiple_of
        self.assistant_only_loss = assistant_only_loss
        # A template that does not mark the assistant's words is replaced by TRL's own, as `SFTTrainer` does.
        is_marked = re.search(r"\{%-?\s*generation\s*-?%\}", str(processor.chat_template))
        self._chat_template = None if is_marked or not assistant_only_loss else get_training_chat_template(processor)
        self._visual_ids = torch.tensor(processor.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))
        self.features: FeatureCache | None = None
        # Rows read and bad ones, a line for each worker: shared, because workers end with an epoch.
        self._counts = torch.zeros(MOST_WORKERS, 2, dtype=torch.int64).share_memory_()
        self._known_bad: set[int] = set()

    @classmethod
    def from_arguments(cls, processor: ValleyProcessor, dataset: Any, valley_args: Any, training_args: Any):
        """The collator that a run's [`ValleyArguments`] and `SFTConfig` describe."""
        return cls(
            processor,
            dataset,
            max_length=training_args.max_length,
            assistant_only_loss=training_args.assistant_only_loss,
            on_bad_sample=valley_args.on_bad_sample,
            bad_sample_file=Path(training_args.output_dir, "bad_samples", f"rank{training_args.process_index}.jsonl"),
            max_bad_share=valley_args.max_bad_share,
            on_long_row=valley_args.on_long_row,
            padding_free=valley_args.pack_batches,
            pad_to_multiple_of=training_args.pad_to_multiple_of,
        )

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """
        A batch of rows.

        Returns:
            `dict` of a batch of B rows with L tokens in the longest:

            - `input_ids`, `attention_mask`, `labels` (B, L) int64, right padded; labels are -100 where nothing is
              learnt.
            - `pixel_values` (images, 3, H, W), `pixel_values_videos` (clips, T max, 3, H, W) float32 and
              `video_num_frames`, a list with the frames of each clip, if there are any.
            - `placeholder_counts`: placeholders of each row, under `"image"` and `"video"`. These and the frames are
              Python's numbers: the model need not wait for a device to read them.
            - with `features` in place of pixels `mm_encoder_outputs`: `last_hidden_state` (frames, tokens, D) under
              `"image"` and `"video"`.

            With `padding_free`, of S tokens in all: `input_ids`, `labels`, `position_ids` (1, S) int64, where
            positions begin anew with each row; no `attention_mask`, whose absence tells attention to look at them;
            `cu_seq_lens_q`, `cu_seq_lens_k` (B + 1,) int32 and `max_length_q`, `max_length_k` for `sdpa_varlen` and
            flash attention; `use_cache=False`, since with a cache rows would see each other.
        """
        tried = [self._try(row) for row in rows]
        good = [
            self._replace(rows, tried, position) if isinstance(result, BadSampleError) else result
            for position, result in enumerate(tried)
        ]
        batch = self._pack(good) if self.padding_free else self._pad(good)
        ids = {"image": self.processor.image_token_id, "video": self.processor.video_token_id}
        counts = {name: [row.count(token) for row in batch["input_ids"].tolist()] for name, token in ids.items()}
        return batch | _join_visuals(good) | {"placeholder_counts": counts}

    def encode(self, row: dict[str, Any]) -> dict[str, torch.Tensor]:
        """
        One row to `input_ids` and `labels` (length,), and to its pixels where it has some.

        Raises:
            BadSampleError: if the row is bad.
        """
        try:
            messages, features = (messages_of(row), {}) if self.features is None else self.features.read_row(row)
            encoded = self.processor.apply_chat_template(
                messages,
                chat_template=self._chat_template,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                return_assistant_tokens_mask=self.assistant_only_loss,
            )
        except VideoDecodeError as error:
            raise BadSampleError(str(row.get("id")), str(row.get("source")), error.path, error.reason) from error
        except (ValueError, TemplateError) as error:
            raise _bad(row, str(error)) from error
        ids = encoded["input_ids"][0]
        is_visual = torch.isin(ids, self._visual_ids)
        labels = ids.masked_fill(is_visual, -100)
        if self.assistant_only_loss:
            labels = labels.masked_fill(encoded["assistant_masks"][0] == 0, -100)
        limit = self.max_length
        if limit is not None and len(ids) > limit:
            if self.on_long_row == "drop":
                raise _bad(row, f"it has {len(ids)} tokens, more than max_length={limit}.")
            if is_visual[limit:].any():
                end = is_visual.nonzero().max() + 1
                raise _bad(row, f"its last visual ends at token {end}, and max_length={limit} may not cut it.")
            ids, labels = ids[:limit], labels[:limit]
        if (labels[1:] == -100).all():
            where = "" if limit is None else f" within max_length={limit}"
            raise _bad(row, f"it holds no word{where} to learn from.")
        visuals = {name: encoded[name] for name in ("pixel_values", *_VIDEO_INPUTS) if name in encoded}
        if features:
            visuals = {name: visuals[name] for name in ("video_num_frames",) if name in visuals} | features
        return {"input_ids": ids, "labels": labels} | visuals

    # --- bad rows ---

    def count_rows(self) -> tuple[int, int]:
        """Rows that this process and its workers have read so far, and how many of them were bad."""
        read, bad = self._counts.sum(0).tolist()
        return read, bad

    def _try(self, row: dict[str, Any]) -> dict[str, torch.Tensor] | BadSampleError:
        worker = torch.utils.data.get_worker_info()
        count = self._counts[worker.id % MOST_WORKERS if worker else 0]
        count[0] += 1
        try:
            return self.encode(row)
        except BadSampleError as error:
            if self.on_bad_sample == "raise":
                raise
            count[1] += 1
            return error

    def _replace(self, rows: list[dict], tried: list, position: int) -> dict[str, torch.Tensor]:
        """What takes the place of a bad row of the batch."""
        error = tried[position]
        read, bad = self.count_rows()
        if self._exceeds_share(bad, read):
            raise self._end(f"{bad} of the {read} rows that this process has read are bad{self._limit()}.", error)
        index = self._find(rows[position])
        if index is None:
            others = [(position + step) % len(rows) for step in range(1, len(rows))]
            found = ((rows[i], tried[i]) for i in others if not isinstance(tried[i], BadSampleError))
        else:
            found = self._good_rows_after(index, error)
        row, encoded = next(found, (None, None))
        if row is None:
            where = "its batch" if index is None else "the data set"
            raise self._end(f"There is no good row in {where} to take the place of a bad one.", error)
        self._write(error, str(row.get("id")))
        return encoded

    def _good_rows_after(self, index: int, error: BadSampleError) -> Iterator[tuple[dict, dict]]:
        total = len(self.dataset)
        self._known_bad.add(index)
        for step in range(1, total):
            other = (index + step) % total
            if other not in self._known_bad:
                row = self.dataset[other]
                try:
                    yield row, self.encode(row)
                except BadSampleError as another:
                    self._known_bad.add(other)
                    error = another
            if self._exceeds_share(step + 1, total):
                raise self._end(f"{step + 1} rows in a row, of {total} in all, are bad{self._limit()}.", error)

    def _find(self, row: dict[str, Any]) -> int | None:
        """Where in the data set a row of a batch is."""
        if not isinstance(self.dataset, Dataset) or not {"id", "source"} <= set(self.dataset.column_names):
            return None
        table = self.dataset.select_columns(["id", "source"]).with_format("arrow")[:]
        same = compute.and_(*(compute.equal(table[name], row.get(name)) for name in ("id", "source")))
        for index in np.flatnonzero(same):  # ids may be there more than once
            if self.dataset[int(index)]["messages"] == row["messages"]:
                return int(index)
        return None

    def _exceeds_share(self, bad: int, read: int) -> bool:
        expected = self.max_bad_share * read
        return bad > expected + 3 * math.sqrt(expected) + 1

    def _limit(self) -> str:
        return f", more than max_bad_share={self.max_bad_share:g} and chance allow"

    def _end(self, message: str, error: BadSampleError) -> ValueError:
        if self.bad_sample_file is not None and os.path.exists(self.bad_sample_file):
            with open(self.bad_sample_file, encoding="utf-8") as lines:
                sources = Counter(json.loads(line)["source"] for line in lines)
            counts = ", ".join(f"{count} of {source!r}" for source, count in sources.most_common())
            message += f" Those replaced so far ({counts}) are listed in {self.bad_sample_file}."
        return ValueError(f"{message} The last one: {error} `valley data check` finds such rows before a run.")

    def _write(self, error: BadSampleError, replaced_by: str) -> None:
        if self.bad_sample_file is None:
            logger.warning("%s It is replaced by row %r.", error, replaced_by)
            return
        entry = {name: getattr(error, name) for name in ("id", "source", "file", "reason")}
        line = json.dumps(entry | {"replaced_by": replaced_by}, ensure_ascii=False) + "\n"
        os.makedirs(os.path.dirname(os.path.abspath(self.bad_sample_file)), exist_ok=True)
        # Workers share the file: one write to its end for each line.
        file = os.open(self.bad_sample_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    # --- batches ---

    def _pad(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        length, step = max(len(row["input_ids"]) for row in rows), self.pad_to_multiple_of or 1
        length = math.ceil(length / step) * step

        def stack(name: str, value: int) -> torch.Tensor:
            return torch.stack([F.pad(row[name], (0, length - len(row[name])), value=value) for row in rows])

        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        return {
            "input_ids": stack("input_ids", self.processor.tokenizer.pad_token_id),
            "attention_mask": (torch.arange(length) < lengths[:, None]).long(),
            "labels": stack("labels", -100),
        }

    def _pack(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
        inputs = [{name: row[name].tolist() for name in ("input_ids", "labels")} for row in rows]
        batch = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(inputs)
        return dict(batch) | {"use_cache": False}


_VIDEO_INPUTS = ("pixel_values_videos", "video_num_frames")


def _join_visuals(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    batch = join_visuals(rows)
    if "video_num_frames" in batch:
        batch["video_num_frames"] = batch["video_num_frames"].tolist()
    kept = {modality: [row[modality] for row in rows if modality in row] for modality in ("image", "video")}
    if kept := {modality: {"last_hidden_state": torch.cat(parts)} for modality, parts in kept.items() if parts}:
        batch["mm_encoder_outputs"] = kept
    return batch


def _bad(row: dict[str, Any], reason: str) -> BadSampleError:
    return BadSampleError(str(row.get("id")), str(row.get("source")), None, reason)


__all__ = ["ValleyDataCollator"]
