"""Policies and rewards in the hub's format: any causal language model, and any sequence classifier with the same tokens.

Models read embeddings, so that hard and relaxed tokens are treated alike. They use the library's "eager" attention, which
can be differentiated twice, unlike fused kernels. Families of models differ in what the harness relies on and don't
declare it, so a model is tried out once when it is loaded (`gradebench.models.trial`).
"""

import copy
import inspect
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.cache_utils import DynamicCache
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from gradebench.core.errors import InputError
from gradebench.core.panics import panics_raised
from gradebench.core.shown import counted
from gradebench.models.classifier_head import AUTO, Head, head_of
from gradebench.models.end_of_text import Ends
from gradebench.models.model_folders import config_of, model_of, refused, tokenizer_of
from gradebench.models.transformer import embed_tokens
from gradebench.models.trial import trial_features, try_policy, try_reward
from gradebench.storage.hub import locate_model
from gradebench.storage.libraries import quiet


class PretrainedVocabulary:
    """Encodes texts to ids and back with a model's own tokenizer.

    `prefix` is the token that the tokenizer puts before every text (BOS), if any; the ids of a text begin with it. Other
    special tokens (ends, separators) aren't added, because the texts are to be continued. `end` is the end token, or
    several: first the tokenizer's, then those of the model's generation configuration; None if there is none.
    """

    def __init__(self, tokenizer: Any, listed: Sequence[int] = ()):
        self.tokenizer = tokenizer
        self.size = 1 + max(tokenizer.get_vocab().values())  # ids need not be contiguous
        before, _ = special_tokens_around(tokenizer)
        self.prefix = before if before == [tokenizer.bos_token_id] else []
        known = [*filter(lambda end: end is not None, [tokenizer.eos_token_id]), *listed]
        ends = tuple(end for end in dict.fromkeys(known) if 0 <= end < self.size)  # others can't be drawn
        self.end: Ends | None = ends if len(ends) > 1 else next(iter(ends), None)

    def __len__(self) -> int:
        return self.size

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        # In parts, because encodings also hold masks and offsets: gigabytes for a large corpus.
        # verbose would warn that whole reviews exceed the context, although only their openings are used.
        plain = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        with panics_raised():
            return [
                self.prefix + row
                for start in range(0, len(texts), 1000)
                for row in self.tokenizer(list(texts[start : start + 1000]), **plain)["input_ids"]
            ]

    def decode(self, ids: Iterable[Sequence[int]]) -> list[str]:
        # No clean-up, which would turn "good ." into "good.": texts are scored as they were sampled.
        rows = [list(row) for row in ids]
        with panics_raised():
            return self.tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class PretrainedPolicy(nn.Module):
    """A causal language model over the first `categories` ids; further rows of its table are padding and never drawn.

    With `half`, it computes in bfloat16. Trained parameters stay in float32, where small updates aren't rounded away.
    """

    def __init__(self, model: nn.Module, categories: int, half: bool = False):
        super().__init__()
        self.model = model.eval()  # no dropout: rollout and log_prob must be of the same policy
        self.categories, self.computes_half = categories, half
        taken = inspect.signature(model.forward).parameters
        self.skips_logits, self.takes_places = "logits_to_keep" in taken, "position_ids" in taken
        self.feature_size = trial_features(self)

    def embed(self, tokens: Tensor) -> Tensor:
        """(N, L) ids or (N, L, V) relaxed one-hots to (N, L, D)."""
        return embed_as(self.model.get_input_embeddings(), tokens)  # type: ignore[operator]

    def forward(
        self,
        embeddings: Tensor,
        cache: DynamicCache | None = None,
        last: int | None = None,
        pads: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, DynamicCache]:
        """Logits (N, L, V), features (N, L, D) and a cache with L more positions; `cache` itself isn't changed.

        With `last`, logits and features of only that many last positions. `pads` (N,): the number of padding positions
        at the beginning of each text.
        """
        last = last or embeddings.shape[1]
        output = self._output(embeddings, cache, last, pads)
        logits, features = output.logits[:, -last:, : self.categories], output.hidden_states[-1][:, -last:]
        return logits, features, output.past_key_values

    def features_of(self, embeddings: Tensor) -> Tensor:
        """Features (N, L, D) alone; where the model can leave logits out, they are of one position."""
        return self._output(embeddings, None, 1, None).hidden_states[-1]

    def _output(self, embeddings: Tensor, cache: DynamicCache | None, last: int, pads: Tensor | None) -> Any:
        options: dict[str, Any] = {"logits_to_keep": last} if self.skips_logits else {}
        if pads is not None:
            start = cache.get_seq_length() if cache else 0
            places = torch.arange(start + embeddings.shape[1], device=pads.device) - pads[:, None]
            options["attention_mask"] = (places >= 0).long()
            if self.takes_places:
                options["position_ids"] = places[:, start:].clamp_min(0)
        with torch.autocast(embeddings.device.type, torch.bfloat16) if self.computes_half else nullcontext():
            return self.model(
                inputs_embeds=embeddings,
                past_key_values=branch(cache),
                use_cache=True,
                output_hidden_states=True,
                **options,
            )

    def reordered(self, cache: DynamicCache, rows: Tensor) -> DynamicCache:
        """The cache of the rows (M,) of the batch."""
        grown = branch(cache)
        assert grown is not None
        grown.reorder_cache(rows)  # type: ignore[arg-type]  # it says LongTensor, and Tensor is meant
        return grown

    def frozen(self) -> "PretrainedPolicy":
        """A copy with the present parameters, which aren't trainable."""
        answer = copy.deepcopy(self).requires_grad_(False)
        return answer.to(torch.bfloat16) if self.computes_half else answer


class PretrainedReward(nn.Module):
    """The output (N,) of a sequence classifier that `head` selects.

    `before` and `after` are the ids of special tokens that the classifier expects around a text.
    """

    differentiable = True
    before: Tensor
    after: Tensor

    def __init__(self, model: nn.Module, head: Head, before: Sequence[int] = (), after: Sequence[int] = ()):
        super().__init__()
        self.model = model.eval()
        self.head = head
        for name, ids in (("before", before), ("after", after)):
            self.register_buffer(name, torch.tensor([list(ids)], dtype=torch.int64), persistent=False)
        # A decoder scores all prefixes in one pass, so the score of a text that ended gradually is a mixture of theirs.
        self.decoder = hasattr(model, "score")
        self.weighs = self.decoder and not len(after)

    def embed(self, tokens: Tensor) -> Tensor:
        """(N, L) ids or (N, L, V) relaxed one-hots to (N, L, D)."""
        return embed_as(self.model.get_input_embeddings(), tokens)  # type: ignore[operator]

    def forward(self, embeddings: Tensor, keep: Tensor | None = None) -> Tensor:
        """The rewards (N,) of embedded texts (N, L, D); `keep` (N, L) is 1 up to the end of a text and 0 after it."""
        before, after = (self.embed(ids).expand(len(embeddings), -1, -1) for ids in (self.before, self.after))
        texts = torch.cat([before, embeddings, after], 1)
        if keep is None:
            return self.head(self.model(inputs_embeds=texts).logits)
        if self.weighs:
            ends_here = keep - functional.pad(keep[:, 1:], (0, 1))
            return (ends_here * self.of_prefixes(texts)[:, -keep.shape[1] :]).sum(1)
        # The special tokens follow directly after a text's end; positions after them are masked.
        rows, places = torch.arange(len(texts), device=texts.device), torch.arange(texts.shape[1], device=texts.device)
        kept = before.shape[1] + keep.round().long().sum(1, keepdim=True)  # (N, 1)
        dropped = texts.shape[1] - after.shape[1] - kept
        texts = texts[rows[:, None], (places + dropped * (places >= kept)).clamp_max(texts.shape[1] - 1)]
        if self.decoder:
            return self.of_prefixes(texts)[rows, (kept + after.shape[1])[:, 0] - 1]
        mask = (places < kept + after.shape[1]).long()
        return self.head(self.model(inputs_embeds=texts, attention_mask=mask).logits)

    def of_prefixes(self, texts: Tensor) -> Tensor:
        """A decoder's rewards (N, L) of every prefix of the texts (N, L, D)."""
        return self.head(self.model.score(self.model.base_model(inputs_embeds=texts).last_hidden_state))  # type: ignore[operator]


def load_policy(
    name_or_path: str, length: int = 1, half: bool = False, lora: int = 0
) -> tuple[PretrainedPolicy, PretrainedVocabulary]:
    """Returns the causal language model of a local folder or a hub id, and its vocabulary.

    `length` is the number of tokens of prompt and horizon together. `half`: compute in bfloat16. `lora`: the rank of
    adapters that are trained instead of the model's own weights; 0 for none.

    Raises InputError if the model can't be used as a policy.
    """
    folder = locate_model(name_or_path).folder
    with quiet(), refused(name_or_path, "a policy"):
        config = config_of(folder, name_or_path)
        named = getattr(config, "architectures", None) or []
        own_code = getattr(config, "auto_map", None)
        if named and not set(named) & _causal_architectures() and not own_code:
            raise InputError(f"{name_or_path}: a {named[0]}, not a causal language model; give one")
        tokenizer = tokenizer_of(folder, name_or_path)
        _check_context(name_or_path, config, tokenizer, length)
        # Trained weights stay in float32; frozen ones may be in bfloat16.
        dtype = torch.bfloat16 if half and lora else torch.float32
        model = model_of(AutoModelForCausalLM, folder, name_or_path, "a causal language model", dtype)
        vocabulary = PretrainedVocabulary(tokenizer, ends_of(name_or_path, model))
        _check_rows(name_or_path, model, len(vocabulary))
        policy = PretrainedPolicy(model, len(vocabulary), half)
        try_policy(policy)
        if lora:
            from gradebench.models.adapters import AdaptedPolicy

            policy = AdaptedPolicy(model, len(vocabulary), half, lora)
    return policy, vocabulary


def load_reward(
    name_or_path: str,
    vocabulary: Any,
    length: int = 1,
    half: bool = False,
    label: str = AUTO,
    activation: str = AUTO,
) -> PretrainedReward:
    """Returns the sequence classifier of a local folder or a hub id.

    `vocabulary` is the policy's, a PretrainedVocabulary or a Vocabulary; `length` is the number of tokens of the
    longest text, prompt and horizon together. `half`: in bfloat16. `label`, `activation`: see `head_of`.

    Raises InputError if the model can't be used as a reward.
    """
    folder = locate_model(name_or_path).folder
    with quiet(), refused(name_or_path, "a reward"):
        config = config_of(folder, name_or_path)
        tokenizer = tokenizer_of(folder, name_or_path)
        own = PretrainedVocabulary(tokenizer)
        check_same_tokens(name_or_path, own, vocabulary)
        head = head_of(config, name_or_path, label, activation)
        before, after = special_tokens_around(tokenizer)
        if before == getattr(vocabulary, "prefix", []):
            before = []  # it is part of the prompts
        _check_context(name_or_path, config, tokenizer, length + len(before) + len(after))
        dtype = torch.bfloat16 if half else torch.float32
        model = model_of(AutoModelForSequenceClassification, folder, name_or_path, "a sequence classifier", dtype)
        _check_rows(name_or_path, model, len(own))
        text_config = model.config.get_text_config()
        text_config.use_cache = False
        if text_config.pad_token_id is None:
            # Decoder classifiers refuse batches without a padding token. With embeddings they don't use it: texts are equally
            # long here, and the last position is the one that is read.
            text_config.pad_token_id = 0
        elif hasattr(
            model, "score"
        ):  # decoder classifiers read the last token that isn't padding, and it may be the end
            while after and after[-1] == text_config.pad_token_id:
                after.pop()
        reward = PretrainedReward(model, head, before, after)
        try_reward(reward, len(own))
    return reward


def embed_as(table: nn.Embedding, tokens: Tensor) -> Tensor:
    """Embeddings (..., D) of ids (...) or of relaxed one-hots (..., V), equal to those of the model's own table.

    Unlike the table, it also passes gradients to the row of the padding token, which the policy may draw. The scale that
    some families apply inside of the table is applied too.
    """
    weight: Tensor = table.weight
    if tokens.is_floating_point() and tokens.shape[-1] < len(weight):
        weight = weight[: tokens.shape[-1]]
    scale = getattr(table, "embed_scale", None)
    embedded = embed_tokens(weight, tokens)
    return embedded if scale is None else embedded * scale


def branch(cache: DynamicCache | None) -> DynamicCache | None:
    """A cache that can grow independently; no tensors are copied, because the library's `update` doesn't write to them."""
    if cache is None:
        return None
    grown = copy.copy(cache)
    grown.layers = [copy.copy(layer) for layer in cache.layers]
    return grown


def special_tokens_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids of the special tokens that the tokenizer puts before and after a text."""
    plain, whole = (tokenizer("good", add_special_tokens=special)["input_ids"] for special in (False, True))
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []


def ends_of(name_or_path: str, model: Any) -> list[int]:
    """The ids at which the library's own generation stops; perhaps none."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = named if isinstance(named, list | tuple) else [] if named is None else [named]
    if not all(isinstance(end, int) for end in ends):
        raise InputError(
            f"{name_or_path}: eos_token_id of its generation is {named!r}; give a number or a list of them"
        )
    return [int(end) for end in ends]


def check_same_tokens(name_or_path: str, own: Any, policy: Any) -> None:
    """Raises InputError if the reward's vocabulary differs from the policy's."""
    theirs, ours = own.tokenizer.get_vocab(), policy.tokenizer.get_vocab()
    if theirs == ours:
        return
    differing = sum(ours.get(token) != i for token, i in theirs.items())
    raise InputError(
        f"{name_or_path}: its vocabulary ({counted(len(theirs), 'token')}, {differing:,} of them other ones) isn't the policy's "
        f"({counted(len(ours), 'token')}); give a classifier with the policy's tokenizer, or reward=trained"
    )


def _causal_architectures() -> set[str]:
    names: set[str] = set()
    for value in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        names.update([value] if isinstance(value, str) else value)
    return names


def _check_context(name_or_path: str, config: Any, tokenizer: Any, length: int) -> None:
    """Raises InputError if the model's context is shorter than `length` tokens."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    limits = [limit for limit in (positions, tokenizer.model_max_length) if limit and limit > 0]
    if limits and min(limits) < length:
        raise InputError(
            f"{name_or_path}: its context of {counted(min(limits), 'token')} is shorter than prompt and horizon together "
            f"({length}, special tokens included); give a model with a longer one, or a smaller size"
        )


def _check_rows(name_or_path: str, model: Any, tokens: int) -> None:
    rows = len(model.get_input_embeddings().weight)
    if rows < tokens:
        raise InputError(f"{name_or_path}: its tokenizer has {tokens:,} ids and its model embeds {rows:,}; mend one")
