# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""The second stage: answers to `verdicts.jsonl`, by a language model that compares them with references, or BERTScore.

The prompts are the protocols' own, data in `prompts/`. A reply that cannot be read is asked again, then its answer is
unjudged: never wrong. All replies are kept as they came.
"""

import ast
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..checkpoint import check_reachable, why_not_loaded
from ..endpoint import Endpoint
from ..whole_files import claim_folder
from .benchmark import Benchmark
from .benchmarks import BENCHMARKS
from .bertscore import BertScorer
from .models import digest_weights
from .predict import RUN, read_predictions
from .records import RecordWriter, read_json, read_records, write_json
from .scores import measure_verdict
from .statistics import kappa


JUDGE, VERDICTS = "judge.json", "verdicts.jsonl"
ATTEMPTS = 3  # at a reply that can be read
FIXED = 200  # answers of an agreement check
MAX_REPLY = 10_000  # characters; of a longer one, nothing is read

# Open weights at a fixed revision: what a judge says today, it says in a year. Of 7 billion weights for a first look;
# for tables Qwen/Qwen2.5-72B-Instruct at 495f39366efef23836d0cfae4fbe635880d2be31, behind `vllm serve`.
DEFAULT_JUDGE = {"model": "Qwen/Qwen2.5-7B-Instruct", "revision": "a09a35458c702b33eeacc393d103063234e8bc28"}


class EndpointJudge:
    """
    A judge behind an OpenAI-compatible endpoint.

    Args:
        base_url (`str`, *optional*):
            Such as `http://localhost:8000/v1`; OpenAI's own by default.
        model (`str`, *optional*):
            Its name there; by default that of the only one. Take a dated name, such as `gpt-4o-2024-11-20`.
        revision (`str`, *optional*):
            Of its weights, where the name does not tell: it stands beside every number.
        temperature (`float`, *optional*, defaults to 0.0), max_tokens (`int`, *optional*, defaults to 256):
            Of its replies. The protocols set neither.
        **options:
            Of [`Endpoint`]: `api_key`, `concurrency`, `timeout`, `prices`, ….
    """

    at_once = 128  # answers, after which verdicts are written

    def __init__(
        self,
        base_url: str | None = None,
        model: str | None = None,
        revision: str | None = None,
        temperature: float = 0.0,
        max_tokens: int = 256,
        **options: Any,
    ):
        self._endpoint = Endpoint(model, base_url, **options)
        self.name, self.revision = self._endpoint.model, revision
        self._settings = {"temperature": temperature, "max_tokens": max_tokens}

    def describe(self) -> dict[str, Any]:
        return {"kind": "endpoint", "model": self.name, "revision": self.revision, **self._settings}

    def keep_replies(self, folder: Path) -> None:
        """Keep all replies in a file of a folder, where a killed run finds them."""
        self._endpoint.keep_replies(folder / "replies.sqlite")

    def reply(self, chats: Sequence[list[dict]]) -> list[dict[str, Any]]:
        """For each chat `text`, or `None` and the `error`; and the `model` and `time` that the server tells."""
        requests = [{"messages": chat, **self._settings} for chat in chats]
        replies = self._endpoint.ask(requests, retry_failed=True, progress=False)
        return [{name: getattr(reply, name) for name in ("text", "error", "model", "time")} for reply in replies]

    @property
    def spent(self) -> dict[str, Any]:
        """Tokens and cost so far."""
        totals = self._endpoint.totals
        return {"tokens": totals.prompt_tokens + totals.completion_tokens, "cost": round(totals.cost, 2)}


class LocalJudge:
    """
    A judge on this machine: any chat model of transformers.

    Args:
        model (`str`, *optional*), revision (`str`, *optional*):
            Folder or name; by default `DEFAULT_JUDGE`.
        batch_size (`int`, *optional*, defaults to 8):
            Answers at once.
        max_tokens (`int`, *optional*, defaults to 256):
            The longest reply. Replies are greedy.
        dtype (`str`, *optional*, defaults to `"auto"`), device (`str`, *optional*):
            Of the weights, and where they run; a GPU if there is one.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if it has no chat template.
    """

    def __init__(
        self,
        model: str | None = None,
        revision: str | None = None,
        batch_size: int = 8,
        max_tokens: int = 256,
        dtype: str = "auto",
        device: str | None = None,
    ):
        if model is None:
            model, revision = DEFAULT_JUDGE["model"], DEFAULT_JUDGE["revision"]
        check_reachable(model, revision)
        try:
            config = AutoConfig.from_pretrained(model, revision=revision)
            self._tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, padding_side="left")
        except OSError as error:
            raise FileNotFoundError(
                f"The judge {model!r} cannot be loaded: {why_not_loaded(model, error)} Give the folder of one, the "
                "URL of a server, or none: string match needs no judge."
            ) from None
        if self._tokenizer.chat_template is None:
            raise ValueError(f"{model} has no chat template: a judge is a chat model.")
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self.name, self.at_once, self._max_tokens = Path(model).name, batch_size, max_tokens
        self.revision = revision or getattr(config, "_commit_hash", None)
        self._dtype = str(config.dtype or torch.float32).removeprefix("torch.") if dtype == "auto" else dtype
        self._source = {"pretrained_model_name_or_path": model, "revision": revision}
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def _model(self) -> Any:
        """Loaded for the first answer: before it, the model that is judged fills the memory."""
        return AutoModelForCausalLM.from_pretrained(**self._source, dtype=self._dtype).eval().to(self._device)

    def describe(self) -> dict[str, Any]:
        about = {"kind": "local", "model": self.name, "revision": self.revision, "weights": self._weights}
        return {**about, "dtype": self._dtype, "temperature": 0.0, "max_tokens": self._max_tokens}

    @cached_property
    def _weights(self) -> str | None:
        """What tells two folders of one name apart; on the Hub a revision does."""
        folder = self._source["pretrained_model_name_or_path"]
        return digest_weights(folder) if os.path.isdir(folder) else None

    @torch.no_grad()
    def reply(self, chats: Sequence[list[dict]]) -> list[dict[str, Any]]:
        """For each chat `text`, `model` and `time`."""
        inputs = self._tokenizer.apply_chat_template(
            list(chats), add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        ).to(self._model.device)
        settings = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        output = self._model.generate(
            **inputs, max_new_tokens=self._max_tokens, pad_token_id=self._tokenizer.pad_token_id, **settings
        )
        texts = self._tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        time = datetime.now(UTC).isoformat(timespec="seconds")
        return [{"text": text.strip(), "error": None, "model": self.name, "time": time} for text in texts]


Judge = EndpointJudge | LocalJudge | BertScorer


def judge(
    run: str | Path,
    by: Judge,
    *,
    prompts: Literal["protocol", "corrected"] = "protocol",
    retry: bool = False,
    only: Iterable[tuple[str, str]] | None = None,
    name: str | None = None,
) -> Path:
    """
    Judge the answers of a run. What has a verdict is not judged again; what nobody replied to is.

    Args:
        run (path):
            The folder of the run.
        by ([`EndpointJudge`], [`LocalJudge`] or [`BertScorer`]):
            Who judges.
        prompts (`str`, *optional*, defaults to `"protocol"`):
            The published prompts, or `"corrected"`: the same without their slips. Numbers of both share no table.
        retry (`bool`, *optional*, defaults to `False`):
            Ask again about what is unjudged since no reply could be read.
        only (`Iterable[tuple[str, str]]`, *optional*):
            View and id of the answers to judge; by default all.
        name (`str`, *optional*):
            Of the judge's folder in that of the run; by default made of the judge's name.

    Returns:
        `Path` of that folder, which holds `judge.json` and `verdicts.jsonl`.

    Raises:
        FileNotFoundError: if there is no run.
        ValueError: if the benchmark needs another judge, or the folder is that of another one.
        EndpointError: if the endpoint answers nobody.
    """
    run = Path(run)
    records, benchmark = read_predictions(run), BENCHMARKS[read_json(run / RUN)["benchmark"]["name"]]
    own_name, settings = describe_judging(by, benchmark, prompts)
    texts = {} if isinstance(by, BertScorer) else read_prompts(benchmark.judged_by)
    folder = run / f"judge-{name or own_name}"
    claim_folder(folder / JUDGE, settings, ("created",))
    if isinstance(by, EndpointJudge):
        by.keep_replies(folder)

    verdicts = read_verdicts(folder)
    done = {key for key, verdict in verdicts.items() if not (_has_failed(verdict) or retry and verdict["unjudged"])}
    answers = {(record["view"], record["id"]): record for record in records if record["answer"] is not None}
    wanted = answers.keys() if only is None else answers.keys() & set(only)
    todo = [
        (answers[key], aspect)
        for key in answers
        for aspect in benchmark.aspects(answers[key])
        if key in wanted and (*key, aspect) not in done and is_whole(answers[key], answers)
    ]
    with RecordWriter(folder / VERDICTS) as writer, tqdm(total=len(todo), desc="judge") as progress:
        for start in range(0, len(todo), by.at_once):
            part = todo[start : start + by.at_once]
            if isinstance(by, BertScorer):
                writer.write(_score(by, [record for record, _ in part]))
            else:
                asked = [(r, aspect, _prompt(texts[aspect][prompts], r, answers)) for r, aspect in part]
                writer.write(_ask(by, asked, texts))
            progress.set_postfix(getattr(by, "spent", {}), refresh=False)
            progress.update(len(part))
    return folder


def describe_judging(by: Judge, benchmark: Benchmark, prompts: str) -> tuple[str, dict[str, Any]]:
    """
    The name that a judge's folder gets, and what `judge.json` in it says of how it judges.

    Raises:
        ValueError: if the benchmark needs another judge.
    """
    _check_judge(by, benchmark)
    settings = {"created": datetime.now(UTC).isoformat(timespec="seconds"), "judge": by.describe()}
    if isinstance(by, BertScorer):
        name = f"{by.name}-layer-{by.layer}"
    else:
        texts = read_prompts(benchmark.judged_by)
        digests = {aspect: _digest([text[prompts], text["again"]]) for aspect, text in texts.items()}
        settings |= {"prompts": prompts, "prompts_sha256": digests, "attempts": ATTEMPTS}
        name = by.name if prompts == "protocol" else f"{by.name}-{prompts}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name), settings


def read_verdicts(folder: str | Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The verdicts in a judge's folder, by view, id and aspect; where an answer was judged again, the last."""
    return {(v["view"], v["id"], v["aspect"]): v for v in read_records(Path(folder) / VERDICTS)}


def read_prompts(name: str) -> dict[str, dict[str, Any]]:
    """The prompts of a protocol, a file in `prompts/`, by aspect."""
    return json.loads(Path(__file__).with_name("prompts").joinpath(f"{name}.json").read_text("utf-8"))["aspects"]


def read_verdict(reply: str, aspect: str, choices: Mapping[str, str] | None = None) -> dict[str, Any] | None:
    """
    What a judge's reply says, or `None` where it says nothing that was asked.

    The reply is a dictionary as Python or JSON writes it, with words around it or not. Doubled quotes are read as
    well: the protocol's own example has them, and honest judges copy it. A score lies between 0 and 5, a letter is one
    of the choices.
    """
    found = _read_dictionary(reply)
    if found is None:
        return None
    if aspect == "choice":
        letter = str(found.get("maximum probability", "")).strip().strip("().").upper()
        return {"choice": letter} if letter in (choices or {}) else None
    try:
        score = float(found["score"])
    except (KeyError, TypeError, ValueError):
        return None
    if not 0 <= score <= 5 or isinstance(found["score"], bool):
        return None
    if aspect != "qa":
        return {"score": score}
    return {"pred": found["pred"], "score": score} if isinstance(found.get("pred"), str) else None


def _read_dictionary(reply: str) -> dict | None:
    inner = re.search(r"\{.*?\}", reply, re.DOTALL)
    if inner is None or len(reply) > MAX_REPLY:
        return None
    for text in (inner[0], inner[0].replace("''", "'")):
        for read in (ast.literal_eval, json.loads):
            try:
                if isinstance(found := read(text), dict):
                    return found
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                continue
    return None


def is_whole(record: Mapping, answers: Mapping) -> bool:
    """Whether the answer to the other wording of a question, which is judged with it, is there as well."""
    return "second" not in record["facts"] or (record["view"], record["facts"]["second"]) in answers


def _prompt(messages: Sequence[Mapping], record: Mapping, answers: Mapping) -> list[dict]:
    """A protocol's messages with an answer in the place of their `{fields}`, all at once: what stands in a field is
    never read as one. `{field!r}` is written as Python writes strings."""
    fields = {"question": record["question"], "answer": " or ".join(record["answers"]), "pred": record["answer"]}
    second = answers.get((record["view"], record["facts"].get("second")))
    if second is not None:
        fields |= {"question1": fields["question"], "question2": second["question"]}
        fields |= {"pred1": record["answer"], "pred2": second["answer"]}
    names = re.compile(rf"\{{({'|'.join(fields)})(!r)?\}}")

    def fill(match: re.Match) -> str:
        return repr(fields[match[1]]) if match[2] else fields[match[1]]

    return [{**message, "content": names.sub(fill, message["content"])} for message in messages]


def _has_failed(verdict: Mapping) -> bool:
    """Whether nobody replied: a server that was away, and may be back."""
    return bool(verdict["unjudged"]) and verdict.get("replies", [""])[-1] is None


def _ask(by: Judge, asked: list[tuple[dict, str, list]], texts: Mapping) -> list[dict[str, Any]]:
    """Verdicts on some answers: all are asked about, then again those whose reply could not be read."""
    said: list[list[dict]] = [[] for _ in asked]
    verdicts: list[dict | None] = [None] * len(asked)
    open_ones = list(range(len(asked)))
    for _ in range(ATTEMPTS):
        chats = []
        for index in open_ones:
            _, aspect, chat = asked[index]
            again = {"role": "user", "content": texts[aspect]["again"]}
            # The same request would bring the same reply at temperature 0: what was said stands before the second.
            turns = [[{"role": "assistant", "content": reply["text"]}, again] for reply in said[index]]
            chats.append([*chat, *(message for turn in turns for message in turn)])
        for index, reply in zip(open_ones, by.reply(chats), strict=True):
            record, aspect, _ = asked[index]
            said[index].append(reply)
            verdicts[index] = read_verdict(reply["text"] or "", aspect, record["choices"])
        open_ones = [i for i in open_ones if verdicts[i] is None and said[i][-1]["text"] is not None]
        if not open_ones:
            break
    return [
        {
            **{"view": record["view"], "id": record["id"], "aspect": aspect},
            **(verdict or {}),
            "unjudged": None if verdict else replies[-1]["error"] or f"no verdict in {len(replies)} replies",
            "replies": [reply["text"] for reply in replies],
            **{name: replies[-1][name] for name in ("model", "time")},
        }
        for (record, aspect, _), verdict, replies in zip(asked, verdicts, said, strict=True)
    ]


def _score(by: BertScorer, records: list[dict]) -> list[dict[str, Any]]:
    scores = by.score([record["answer"] for record in records], [record["answers"] for record in records])
    return [
        {
            **{"view": record["view"], "id": record["id"], "aspect": "bertscore", "unjudged": None},
            **{"score": score.f1, "precision": score.precision, "recall": score.recall},
        }
        for record, score in zip(records, scores, strict=True)
    ]


def check_agreement(run: str | Path, first: Judge, second: Judge, count: int = FIXED) -> dict[str, Any]:
    """
    Let two judges judge the same answers of a run, and tell how far they agree beyond chance.

    Args:
        run (path):
            The folder of the run.
        first, second ([`EndpointJudge`] or [`LocalJudge`]):
            The judges; their names differ. Verdicts are kept in their folders like all others.
        count (`int`, *optional*, defaults to 200):
            How many answers: those whose ids have the smallest sha256, the same for all judges and checkpoints.

    Returns:
        `dict` with `answers`, those that both judged; `kappa` of their yes and no (or letters) and `same`, the share
        of equal ones; `kappa_score`, with squared weights, of their scores. `None` where a judge says the same of all.
        It is kept as `agreement.json` in the folder of the second.
    """
    run = Path(run)
    ids = {
        record["id"] for record in read_predictions(run) if record["view"] == "clip" and record["answer"] is not None
    }
    fixed = sorted(ids, key=lambda name: hashlib.sha256(name.encode()).digest())[:count]
    folders = [judge(run, by, only=[("clip", name) for name in fixed]) for by in (first, second)]
    if folders[0] == folders[1]:
        raise ValueError(f"Both judges are {first.name}, in one folder: an agreement check needs two.")
    both = [read_verdicts(folder) for folder in folders]
    pairs = [(both[0][key], both[1][key]) for key in both[0] if key in both[1] and key[1] in set(fixed)]
    pairs = [pair for pair in pairs if not any(verdict["unjudged"] for verdict in pair)]
    words = [pair for pair in ([_word(verdict) for verdict in pair] for pair in pairs) if None not in pair]
    scores = [[int(verdict["score"]) for verdict in pair] for pair in pairs if "score" in pair[0]]
    found = {
        "judges": [folder.name.removeprefix("judge-") for folder in folders],
        "answers": len(pairs),
        "kappa": kappa(*zip(*words, strict=True)) if words else None,
        "same": sum(a == b for a, b in words) / len(words) if words else None,
        "kappa_score": kappa(*zip(*scores, strict=True)) if scores else None,
    }
    write_json(folders[1] / "agreement.json", found)
    return found


def _word(verdict: Mapping) -> str | float | None:
    return verdict.get("choice") or measure_verdict(verdict).get("yes")


def _check_judge(by: Judge, benchmark: Benchmark) -> None:
    if benchmark.judged_by is None:
        raise ValueError(f"{benchmark.title} needs no judge: its answers are letters. Go on with the report.")
    needs_scorer = benchmark.judged_by == "bertscore"
    if needs_scorer != isinstance(by, BertScorer):
        needed = "BERTScore" if needs_scorer else "a language model"
        raise ValueError(f"{benchmark.title} is judged by {needed}, not by a {type(by).__name__}.")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


__all__ = [
    "DEFAULT_JUDGE",
    "EndpointJudge",
    "JUDGE",
    "Judge",
    "LocalJudge",
    "VERDICTS",
    "check_agreement",
    "judge",
    "read_prompts",
    "read_verdict",
    "read_verdicts",
]
