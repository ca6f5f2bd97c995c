# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""A metric in the browser: the page of its Space. `evaluate`'s own asks for a gradio of 2023."""

import json
import os
from typing import Any


def metric_app(script: str | os.PathLike) -> Any:
    """
    A page that computes a metric from JSON.

    Args:
        script (path): of the module of `evaluate`.

    Returns:
        A `gradio.Interface`, to be launched.
    """
    import evaluate
    import gradio

    metric = evaluate.load(os.fspath(script))

    def compute(*texts: str) -> dict[str, Any]:
        try:
            return metric.compute(
                **{name: json.loads(text) for name, text in zip(metric.features, texts, strict=True)}
            )
        except (ValueError, TypeError, KeyError) as error:
            raise gradio.Error(f"{type(error).__name__}: {error}") from error

    return gradio.Interface(
        compute,
        [gradio.Textbox(label=f"{name}, as JSON", lines=6) for name in metric.features],
        gradio.JSON(label="numbers"),
        title=metric.name,
        description=f"{metric.info.description}\n\n```text\n{metric.inputs_description}\n```",
        flagging_mode="never",
    )


__all__ = ["metric_app"]
