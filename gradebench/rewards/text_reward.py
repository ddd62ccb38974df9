"""Rewards that read texts and so have no derivative: a Python function, or a classifier with a tokenizer of its own."""

import hashlib
import importlib
import inspect
import os
import re
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradebench.core.errors import InputError
from gradebench.core.global_state import put_back
from gradebench.core.interrupts import is_users
from gradebench.core.panics import Panicked, panics_raised
from gradebench.models.classifier_head import AUTO, Head, head_of
from gradebench.models.end_of_text import Ends
from gradebench.plugins import plugin_files, registry
from gradebench.plugins.source_digest import source_digest, with_declared
from gradebench.rewards.answers import Refused, numbers_of
from gradebench.storage.hub import locate_model
from gradebench.storage.libraries import first_line, quiet

AT_ONCE = 64  # texts that a classifier reads in one pass
_FUNCTION = re.compile(r".+\.py:\w+|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_NAMES = ("texts", "prompts", "completions")  # what a function may ask for
_NO_TEXTS = ("prompt", "quer", "question", "complet", "respon", "answer", "output")  # names of something else

Decode = Callable[[Iterable[Sequence[int]]], list[str]]
Score = Callable[[list[str], list[str]], Sequence[float]]  # of prompts and their completions


class TextReward(nn.Module):
    """Reward (N,) of ids (N, L), by a score of the texts that they decode to; `prompt` of the L are the prompt's.

    What `embed` gives are the ids themselves: a text has no embedding. `end`: the token that ends a text, or
    several.
    """

    differentiable = False

    def __init__(self, score: Score, decode: Decode, prompt: int, end: Ends | None = None):
        super().__init__()
        self.score, self.decode, self.prompt = score, decode, prompt
        self.ends = {end} if isinstance(end, int) else set(end or ())

    def embed(self, tokens: Tensor) -> Tensor:
        if tokens.is_floating_point():
            raise TypeError("a reward that reads texts can't read relaxed tokens")
        return tokens

    def forward(self, ids: Tensor, keep: Tensor | None = None) -> Tensor:
        """Of ids whose positions before the end are those that `keep` (N, L) has; a prompt's padding stands last."""
        counts = [ids.shape[1]] * len(ids) if keep is None else keep.round().sum(1).long().tolist()
        cut = [self._cut(row, count) for row, count in zip(ids.tolist(), counts, strict=True)]
        prompts = self.decode([prompt for prompt, _ in cut])
        wholes = self.decode([prompt + rest for prompt, rest in cut])
        alone = self.decode([rest for _, rest in cut])
        # A character cut in two by the prompt's end (tokens are bytes) makes the whole begin in another way.
        completions = [
            whole.removeprefix(prompt) if whole.startswith(prompt) else rest
            for prompt, whole, rest in zip(prompts, wholes, alone, strict=True)
        ]
        values = torch.tensor(self.score(prompts, completions), dtype=torch.float32)
        if not bool(values.isfinite().all()):
            first = int((~values.isfinite()).nonzero()[0])
            raise InputError(f"the reward of {wholes[first][:80]!r} is {values[first]}, no finite number")
        return values.to(ids.device)

    def _cut(self, row: list[int], count: int) -> tuple[list[int], list[int]]:
        """A prompt's ids and those of what follows up to its end, of a row whose first `count` ids count.

        The rest of a row is ends, again and again, then padding, which is another token; or padding alone.
        """
        rest = row[count:]
        padding = next((i for i, token in enumerate(reversed(rest)) if token in self.ends), len(rest))
        prompt = self.prompt - padding
        return row[:prompt], row[prompt:count]


@dataclass(frozen=True)
class RewardFunction:
    """A Python function as a score, with what it answers checked.

    It is called by the names in its signature, as TRL calls a reward function: `texts` (prompt and completion in one),
    `prompts`, `completions`, lists of strings; an only argument of another name gets texts. It answers one number a text, in
    anything that can be read once in order.
    """

    name: str  # FILE.py:OBJECT or MODULE:OBJECT
    digest: str  # SHA-256 of the file that defines it
    function: Callable[..., Any]

    def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
        texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        # Lists of its own, which it may change.
        given = {"texts": list(texts), "prompts": list(prompts), "completions": list(completions)}
        names = _asked(self.function)
        try:
            with put_back(f"reward {self.name}"), panics_raised():
                arguments = {name: given[name] for name in names}
                answer = self.function(**arguments) if names else self.function(given["texts"])
                return numbers_of(answer, texts)  # here, because a generator runs only when it is read
        except Refused as refused:
            raise InputError(f"reward {self.name} {refused}") from None
        except BaseException as error:
            if is_users(error):
                raise
            raised = error.__cause__ if isinstance(error, Panicked) else None
            raise InputError(f"reward {self.name} {_raised(raised or error)}") from error


class TextClassifier(nn.Module):
    """The output of a sequence classifier that its `head` chooses; it reads each text with its own tokenizer.

    A decoder without a declared padding token is read at each text's last token, as the library does one by one.
    """

    def __init__(self, model: Any, tokenizer: Any, head: Head, reads_last: bool = False):
        super().__init__()
        self.model, self.tokenizer, self.head, self.reads_last = model.eval(), tokenizer, head, reads_last

    @torch.no_grad()
    def forward(self, prompts: list[str], completions: list[str]) -> list[float]:
        texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        values: list[float] = []
        for start in range(0, len(texts), AT_ONCE):
            part = texts[start : start + AT_ONCE]
            with panics_raised():
                encoded = self.tokenizer(part, padding=True, truncation=True, return_tensors="pt", verbose=False)
            device = next(self.model.parameters()).device
            values += self.head(self._logits({name: tensor.to(device) for name, tensor in encoded.items()})).tolist()
        return values

    def _logits(self, inputs: dict[str, Tensor]) -> Tensor:
        """(N, labels) of texts that are padded on the right."""
        if not self.reads_last:
            return self.model(**inputs).logits.float()
        features = self.model.base_model(**inputs).last_hidden_state
        last = inputs["attention_mask"].sum(1) - 1
        return self.model.score(features[torch.arange(len(last), device=last.device), last]).float()


def names_function(text: str) -> bool:
    """Whether it is FILE.py:OBJECT or MODULE:OBJECT, and no folder."""
    return bool(_FUNCTION.fullmatch(text)) and not os.path.isdir(os.path.expanduser(text))


def code_of(text: str) -> str:
    """Whose code a function's name stands for: the path of its file, or its package."""
    place = text.rpartition(":")[0]
    return str(Path(place).expanduser().resolve()) if place.endswith(".py") else place.partition(".")[0]


def load_function(text: str) -> RewardFunction:
    """The function that FILE.py:OBJECT or MODULE:OBJECT names; a file runs anew when it has changed.

    Raises InputError where it can't be loaded.
    """
    place, _, name = text.rpartition(":")
    if place.endswith(".py"):
        plugin = registry.load_file(place, name)
        loaded, digest, label = plugin.factory, plugin.digest, plugin.name
    else:
        try:
            with plugin_files.kept(f"reward {text}", code_of(text)):
                module = importlib.import_module(place)
            loaded, label = getattr(module, name), text
        except BaseException as error:
            if is_users(error):
                raise
            raise InputError(f"reward={text} can't be imported: {first_line(error)}") from error  # type: ignore[arg-type]
        file = getattr(module, "__file__", None) or ""
        digest = source_digest(place, file) if file.endswith(".py") else hashlib.sha256(text.encode()).hexdigest()
        digest = with_declared(digest, file, registry.declared(module, loaded))
    if not callable(loaded):
        raise InputError(f"reward={text}: {name} is of type {type(loaded).__name__}, not a function")
    _asked(loaded)
    return RewardFunction(label, digest, loaded)


def load_text_classifier(name_or_path: str, label: str = AUTO, activation: str = AUTO) -> TextClassifier:
    """The sequence classifier of a local folder or a hub id, with its own tokenizer. `label`, `activation`: `head_of`.

    Raises InputError, in one line, for whatever keeps the model from serving as a reward.
    """
    # The library of models takes seconds to load.
    from transformers import AutoModelForSequenceClassification

    from gradebench.models import model_folders

    folder = locate_model(name_or_path).folder
    with quiet(), model_folders.refused(name_or_path, "a reward"):
        tokenizer = model_folders.tokenizer_of(folder, name_or_path)
        kind = "a sequence classifier"
        model = model_folders.model_of(AutoModelForSequenceClassification, folder, name_or_path, kind, torch.float32)
        head = head_of(model.config, name_or_path, label, activation)
        text_config = model.config.get_text_config()
        reads_last = hasattr(model, "score") and text_config.pad_token_id is None and tokenizer.pad_token is None
        if tokenizer.pad_token is None:
            if text_config.pad_token_id is not None:
                tokenizer.pad_token = tokenizer.convert_ids_to_tokens(text_config.pad_token_id)
            else:
                tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        tokenizer.padding_side = "right"
        text_config.pad_token_id = tokenizer.pad_token_id
        positions = getattr(text_config, "max_position_embeddings", None)
        tokenizer.model_max_length = min(filter(None, (positions, tokenizer.model_max_length)))
        classifier = TextClassifier(model, tokenizer, head, reads_last)
        classifier(["good"], [" and bad"])
    return classifier


def shares_tokens(name_or_path: str, vocabulary: Any) -> bool:
    """Whether the ids of a model's tokenizer mean the policy's tokens."""
    from gradebench.models import model_folders

    folder = locate_model(name_or_path).folder
    with quiet(), model_folders.refused(name_or_path, "a reward"):
        return model_folders.tokenizer_of(folder, name_or_path).get_vocab() == vocabulary.tokenizer.get_vocab()


def _asked(function: Callable[..., Any]) -> list[str]:
    """The names that a function is called by; none: with texts alone, by position, as its one argument has another name.

    Raises InputError where it asks for something else.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C: it doesn't say
        return []
    named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    names = [one.name for one in named if one.name in _NAMES]
    open_ended = any(one.kind is one.VAR_KEYWORD for one in parameters)
    unknown = [
        one
        for one in parameters
        if one.default is one.empty and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL) and one.name not in names
    ]
    if not unknown and (names or (open_ended and not named)):
        return [*_NAMES[1:]] if open_ended and "texts" not in names else names
    one_of_texts = len(unknown) < 2 and not names and not any(one.kind is one.KEYWORD_ONLY for one in unknown)
    if not one_of_texts or any(one.name.casefold().startswith(_NO_TEXTS) for one in unknown):
        raise InputError(
            f"{getattr(function, '__name__', 'the reward')} asks for {', '.join(one.name for one in unknown)}; "
            f"a reward takes texts, or prompts and completions, by these names"
        )
    return []


def _raised(error: BaseException) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    message = " ".join(str(error).split())
    own = Path(place.filename).parent == Path(__file__).parent  # such as where an iterator of the function's is read
    where = "" if own else f" ({Path(place.filename).name}, line {place.lineno})"
    return f"raised {type(error).__name__}: {message[:200]}{where}"
