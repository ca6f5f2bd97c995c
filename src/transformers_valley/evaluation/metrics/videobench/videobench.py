# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The scores of Video-Bench as a metric of `evaluate`.

`evaluate.load` copies this file elsewhere, so it names the package whole. The function behind it runs without
`evaluate`.
"""

import datasets
import evaluate

from transformers_valley.evaluation.scores import video_bench_scores


_DESCRIPTION = """Accuracy in percent of the three groups of PKU's Video-Bench, with its weights, and the plain mean of
the groups. A group is left out where one of its data sets has no judged answer."""
_INPUTS = """Args:
    predictions: list of letters.
    references: list of {'letter', 'data_set'}, such as {'letter': 'F', 'data_set': 'MOT'}.
Returns:
    All, Video-Exclusive, Prior-Knowledge, Decision-Making"""
_CITATION = """@article{ning2023videobench,
  title={Video-Bench: A Comprehensive Benchmark and Toolkit for Evaluating Video-based Large Language Models},
  author={Ning, Munan and Zhu, Bin and Xie, Yujia and Lin, Bin and Cui, Jiayi and Yuan, Lu and Chen, Dongdong
          and Yuan, Li},
  journal={arXiv preprint arXiv:2311.16103},
  year={2023}
}"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class VideoBench(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": {"letter": datasets.Value("string"), "data_set": datasets.Value("string")},
                }
            ),
        )

    def _compute(self, predictions, references) -> dict:
        right, data_sets = ([reference[key] for reference in references] for key in ("letter", "data_set"))
        return video_bench_scores(predictions, right, data_sets)
