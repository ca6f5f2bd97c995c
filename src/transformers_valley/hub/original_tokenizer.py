# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""Loads the tokenizer of an original Valley checkpoint, with the ids and the pieces that it was trained with.

Input: a folder with `tokenizer.json`, or `tokenizer.model` as most have. Output: the tokenizer with Valley's tokens.
"""

from pathlib import Path

from tokenizers import normalizers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from ..configuration_valley import SPECIAL_TOKENS, add_special_tokens
from ..whole_files import read_json


def load_original_tokenizer(folders: list[Path], num_rows: int) -> tuple[PreTrainedTokenizerFast, dict[str, int], int]:
    """
    Load a tokenizer, check it and add the tokens that it lacks.

    `AutoTokenizer` is not used: it reads the flat config, and does not know every name that the class had.

    Args:
        folders (`list[Path]`):
            Folders that may have the tokenizer, the first one first.
        num_rows (`int`):
            Rows of the embeddings that belong to it.

    Returns:
        The tokenizer, the ids of Valley's tokens, and how many ids there were before tokens were added.

    Raises:
        ValueError: if there is no tokenizer, it is corrupt, or its ids do not fit the embeddings.
        ImportError: if it is a sentencepiece model and the packages that read it are not installed.
    """
    names = ("tokenizer.json", "tokenizer.model")
    path = next((folder / name for folder in folders for name in names if (folder / name).exists()), None)
    if path is None:
        places = " or ".join(f"'{folder}'" for folder in dict.fromkeys(folders))
        raise ValueError(f"There is no tokenizer in {places}: neither {' nor '.join(names)}.")
    load = PreTrainedTokenizerFast.from_pretrained if path.suffix == ".json" else _load_sentencepiece
    try:
        tokenizer = load(path.parent)
    except ImportError:
        raise
    except Exception as error:  # the library that parses it raises plain exceptions
        raise ValueError(f"Cannot read '{path}': {error}.") from error
    for name in ("is_local", "local_files_only"):  # how it was loaded is not a setting of it
        tokenizer.init_kwargs.pop(name, None)
    _check_added_tokens(tokenizer, path.parent)

    before = tokenizer.get_vocab()
    num_known = max(before.values()) + 1
    if missing := [token for token in SPECIAL_TOKENS[2:] if token not in before]:
        raise ValueError(f"'{path}' lacks {', '.join(missing)}: it is not the tokenizer that Valley was trained with.")
    if num_known > num_rows:
        raise ValueError(
            f"'{path}' has ids up to {num_known - 1} and the weights only {num_rows} rows of "
            "model.embed_tokens.weight: they do not belong together."
        )
    add_special_tokens(tokenizer)
    token_ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    # The library counts the tokens to find the next id, which is wrong where ids are left out.
    if inside := [token for token, index in token_ids.items() if token not in before and index < num_known]:
        raise ValueError(
            f"'{path}' has ids up to {num_known - 1} for {len(before)} tokens: {' and '.join(inside)} would get ids "
            "among these. Use the tokenizer that the checkpoint was trained with."
        )
    return tokenizer, token_ids, num_known


def _check_added_tokens(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Refuse ids that changed: the library renumbers added tokens in their order and without gaps."""
    stored = []
    if (path := folder / "tokenizer.json").exists():
        stored += [(path, one["content"], one["id"]) for one in read_json(path).get("added_tokens") or []]
    if (path := folder / "added_tokens.json").exists():
        stored += [(path, token, index) for token, index in read_json(path).items()]
    moved = [
        f"{token} is {index!r} in '{path}' and became {found}"
        for path, token, index in stored
        if (found := tokenizer.convert_tokens_to_ids(token)) != index
    ]
    if moved:
        raise ValueError(
            f"Added tokens cannot keep their ids: {', '.join(moved)}. Number them in their order and without gaps, as "
            "the rows of the weights are."
        )


def _load_sentencepiece(folder: Path) -> PreTrainedTokenizerFast:
    try:
        import google.protobuf  # noqa: F401
        import sentencepiece  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"The tokenizer in '{folder}' is a sentencepiece model. To read it, run: "
            "pip install 'transformers-valley[convert]'"
        ) from error
    path = folder / "tokenizer_config.json"
    settings = {"add_bos_token": True, "legacy": True} | (read_json(path) if path.exists() else {})
    llama = LlamaTokenizer.from_pretrained(folder, add_bos_token=settings["add_bos_token"])
    if settings["legacy"] is not False:
        # Until mid 2023 every piece of text between special tokens began with a space, as sentencepiece writes it.
        space = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        llama.backend_tokenizer.normalizer = normalizers.Sequence(space)
        llama.backend_tokenizer.pre_tokenizer = None
    # Some files name no special tokens at all, or empty ones.
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None}
    special = {name: getattr(llama, name) or default for name, default in special.items()}
    # `LlamaTokenizer` would be rebuilt from vocabulary and merges, and lose the above.
    return PreTrainedTokenizerFast(
        tokenizer_object=llama.backend_tokenizer,
        model_max_length=llama.model_max_length,
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in special.items() if token},
    )


__all__ = ["load_original_tokenizer"]
