# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The accuracies of ScienceQA as a metric of `evaluate`.

`evaluate.load` copies this file elsewhere, so it names the package whole. The function behind it runs without
`evaluate`.
"""

import datasets
import evaluate

from transformers_valley.evaluation.scores import scienceqa_accuracy


_DESCRIPTION = """Accuracy in percent over ScienceQA's classes: subject (NAT, SOC, LAN), context (TXT, IMG, NO, of
which the first two overlap), grade (G1-6, G7-12), and Average over all questions."""
_INPUTS = """Args:
    predictions: list of numbers of the choice, from 0; -1 where none was made, which is wrong.
    references: list of {'answer', 'subject', 'grade', 'hint', 'image'}, as in problems.json; image '' where there is
    none.
Returns:
    NAT, SOC, LAN, TXT, IMG, NO, G1-6, G7-12, Average, as far as there are questions"""
_CITATION = """@inproceedings{lu2022learn,
  title={Learn to Explain: Multimodal Reasoning via Thought Chains for Science Question Answering},
  author={Lu, Pan and Mishra, Swaroop and Xia, Tanglin and Qiu, Liang and Chang, Kai-Wei and Zhu, Song-Chun and
          Tafjord, Oyvind and Clark, Peter and Kalyan, Ashwin},
  booktitle={NeurIPS},
  year={2022}
}"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class ScienceQAAccuracy(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("int64"),
                    "references": {
                        "answer": datasets.Value("int64"),
                        **{name: datasets.Value("string") for name in ("subject", "grade", "hint", "image")},
                    },
                }
            ),
        )

    def _compute(self, predictions, references) -> dict:
        return scienceqa_accuracy(predictions, references)
