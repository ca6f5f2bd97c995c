# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Evaluation in three stages, each a file on disk: predict, judge, report. `evaluate` does all three."""

from .benchmark import Benchmark, BenchmarkData, Sample
from .benchmarks import BENCHMARKS, load_benchmark
from .bertscore import BertScorer
from .evaluate import evaluate
from .judge import DEFAULT_JUDGE, EndpointJudge, LocalJudge, check_agreement, judge
from .predict import predict, read_predictions
from .report import Report, report


__all__ = [
    "BENCHMARKS",
    "DEFAULT_JUDGE",
    "Benchmark",
    "BenchmarkData",
    "BertScorer",
    "EndpointJudge",
    "LocalJudge",
    "Report",
    "Sample",
    "check_agreement",
    "evaluate",
    "judge",
    "load_benchmark",
    "predict",
    "read_predictions",
    "report",
]
