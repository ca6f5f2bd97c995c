# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Noun phrases of captions, found by spaCy.

In go texts; out come their noun phrases in lower case, with their articles, as spaCy's `noun_chunks` has them.
"""

from collections.abc import Iterable, Iterator


MODEL = "en_core_web_sm"


class NounPhrases:
    """
    A pipeline of spaCy that finds noun phrases.

    Args:
        model (`str`, *optional*, defaults to `"en_core_web_sm"`):
            Its name or folder.
        workers (`int`, *optional*, defaults to 1):
            Processes. Each takes about 0.7 GB, since spaCy loads torch where it is installed.

    Raises:
        ImportError: if spaCy is missing.
        ValueError: if the pipeline is missing, or cannot find noun phrases.
    """

    def __init__(self, model: str = MODEL, workers: int = 1):
        try:
            import spacy
        except ModuleNotFoundError as error:
            raise ImportError(f"{error}; `pip install 'transformers-valley[build]'` brings it along.") from error
        try:
            # Phrases need tags, attributes and the parse, and nothing else: twice as fast.
            self._pipeline = spacy.load(model, exclude=["ner", "lemmatizer"])
        except OSError as error:
            raise ValueError(
                f"spaCy has no pipeline {model!r}: get it with `python -m spacy download {model}`, or name another."
            ) from error
        self._workers = workers
        meta = self._pipeline.meta
        self.name = f"{meta['lang']}_{meta['name']} {meta['version']}, spaCy {spacy.__version__}"
        if "parser" not in self._pipeline.pipe_names:
            raise ValueError(f"The pipeline {model!r} of spaCy has no parser, which finds noun phrases: name another.")

    def __call__(self, texts: Iterable[str]) -> Iterator[list[str]]:
        """The noun phrases of each text."""
        for doc in self._pipeline.pipe(texts, batch_size=256, n_process=self._workers):
            yield [chunk.text.lower() for chunk in doc.noun_chunks]


__all__ = ["MODEL", "NounPhrases"]
