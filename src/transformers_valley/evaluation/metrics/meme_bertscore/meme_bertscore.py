# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""BERTScore against several references, as MemeCap is scored, as a metric of `evaluate`.

`evaluate.load` copies this file elsewhere, so it names the package whole. The function behind it runs without
`evaluate`.
"""

import datasets
import evaluate

from transformers_valley.evaluation.bertscore import bertscore_f1


_DESCRIPTION = """BERTScore F1 in percent: for each text the best over its references, the mean over all; an empty text
is 0 and counted. Model, revision and layer are part of the result. No idf weights, no rescaling."""
_INPUTS = """Args:
    predictions: list of texts.
    references: list of lists of texts.
    model: folder or name of an encoder, 'roberta-large' by default.
    layer: which hidden layer, known for roberta-large and microsoft/deberta-xlarge-mnli.
Returns:
    f1, precision, recall, empty, model, revision, layer"""
_CITATION = """@inproceedings{zhang2020bertscore,
  title={BERTScore: Evaluating Text Generation with BERT},
  author={Zhang, Tianyi and Kishore, Varsha and Wu, Felix and Weinberger, Kilian Q. and Artzi, Yoav},
  booktitle={ICLR},
  year={2020}
}"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class MemeBertScore(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references, **scorer) -> dict:
        return bertscore_f1(predictions, references, **scorer)
