# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The page of the metric's Space."""

from pathlib import Path

from transformers_valley.evaluation.metric_app import metric_app


metric_app(Path(__file__).with_name("scienceqa_accuracy.py")).launch()
