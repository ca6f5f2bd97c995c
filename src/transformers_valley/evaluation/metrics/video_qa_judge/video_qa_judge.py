# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The numbers of Video-ChatGPT's judge as a metric of `evaluate`.

`evaluate.load` copies this file elsewhere, so it names the package whole. The function behind it runs without
`evaluate`.
"""

import datasets
import evaluate

from transformers_valley.evaluation.scores import video_qa_scores


_DESCRIPTION = """Accuracy (yes over yes and no, in percent) and score (mean of int(score), 0 to 5) of the verdicts of
a judge on open-ended video questions, by the protocol of Video-ChatGPT; and beside them both without its slips: words
that are neither yes nor no, scores that are truncated. Pass judged items only, and report how many those are."""
_INPUTS = """Args:
    predictions: list of {'pred': 'yes' or 'no', 'score': number from 0 to 5}, as the judge replied.
Returns:
    accuracy, score, accuracy_strict, score_not_truncated"""
_CITATION = """@inproceedings{maaz2024videochatgpt,
  title={Video-ChatGPT: Towards Detailed Video Understanding via Large Vision and Language Models},
  author={Maaz, Muhammad and Rasheed, Hanoona and Khan, Salman and Khan, Fahad},
  booktitle={ACL},
  year={2024}
}"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class VideoQAJudge(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": {"pred": datasets.Value("string"), "score": datasets.Value("float64")}}
            ),
        )

    def _compute(self, predictions) -> dict:
        return video_qa_scores(predictions)
