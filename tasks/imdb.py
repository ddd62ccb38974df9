"""Continue the opening of a film review so that the reward model finds it positive."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradebench import LanguageModelTask, Range
from gradebench.core.errors import InputError
from gradebench.core.seeds import parse_seeds
from gradebench.core.shown import counted
from gradebench.core.task import Log
from gradebench.kit.language_model_task import ADAPTERS_LEARNING_RATE
from gradebench.kit.making import parameters_of, pretrained, with_weights, write_report
from gradebench.models.classifier_head import AUTO, Activation
from gradebench.models.feature_reward import FeatureReward
from gradebench.models.pretraining import accuracy, token_rows
from gradebench.models.saving import is_scratch
from gradebench.models.transformer import ScratchPolicy
from gradebench.models.vocabulary import load_vocabulary, train_vocabulary
from gradebench.storage.cache import cached_folder
from gradebench.storage.tuned import trials_in_words
from gradebench.tasks import grammar
from gradebench.tasks.corpora import EMBEDDED, Corpus, HubUnreachable, hub_corpus, read_corpus, split_corpus
from gradebench.tasks.judge import load_judge, train_judge
from gradebench.tasks.presets import GPT2, MINI, PAPER, SMOLLM2
from gradebench.tasks.sentiment import JUDGED, LABELLED, ScratchReward, build_reward, is_probability

SPLIT_SEED = 0  # seed of instance 0's corpus, splits and models; other instances add their number
_READ = ("train", "reward", "judge")  # parts on which vocabulary and policy are trained


@dataclass(frozen=True)
class Size:
    """Shapes and training budgets of the models made here."""

    width: int
    layers: int
    heads: int
    vocabulary: int  # at most
    prompt: int  # tokens
    horizon: int  # new tokens
    prompts: int  # in each split, at most
    policy_steps: int
    reward_steps: int
    steps: int  # training steps of a cell


SIZES = {
    "mini": Size(64, 2, 4, 1000, 8, 12, 256, 700, 400, 40),
    "small": Size(128, 2, 4, 1000, 12, 16, 1024, 2500, 1500, 150),
    "smollm2": Size(128, 2, 4, 1000, 12, 16, 1024, 2500, 1500, 100),
    "gpt2": Size(128, 2, 4, 1000, 16, 32, 1024, 2500, 2000, 200),
    "paper": Size(128, 2, 4, 1000, 32, 64, 10_000, 2500, 2000, 250),
}
# Measured on 2 CPU cores, without a GPU.
MADE_HERE = {
    "mini": "a minute, 2 GB of memory",
    "small": "with 18 cells of the real reviews half an hour, 4 GB of memory",
}
PRESETS = {preset.name: preset for preset in (MINI, SMOLLM2, GPT2, PAPER)}


class Imdb(LanguageModelTask):
    """Film-review openings continued towards positive sentiment (autoregressive language model)."""

    version = 1
    made = {"policy": "scratch", "reward": "trained"}  # noqa: RUF012  never written to
    memory_advice = "imdb:checkpointing=8 (or fewer sequences)"

    def __init__(
        self,
        corpus: Annotated[str, "auto (hub, else embedded), hub, embedded, or a path to reviews"] = "auto",
        size: Annotated[
            Literal["auto", "mini", "small", "smollm2", "gpt2", "paper"],
            "size of prompts, continuations and models made here; auto: the preset's, or mini or small depending on the corpus",
        ] = "auto",
        kl: Annotated[
            float | None, Range(0), "beta of the KL penalty, in reward per nat; none: the preset's, 0.05 in mini"
        ] = None,
        policy: Annotated[
            str,
            "scratch, or a hub id, folder, GGUF file or package with a causal language model; auto: the preset's, scratch in mini",
        ] = "auto",
        reward: Annotated[
            str,
            "trained: a small classifier; features: a head on the frozen policy's features; or a hub id or folder of a "
            "sequence classifier, or a function, FILE.py:NAME or MODULE:NAME; auto: the preset's, trained in mini",
        ] = "auto",
        checkpointing: Annotated[
            int | None,
            Range(0),
            "number of sequences whose activations are kept, the others being recomputed; 0: all; none: the preset's",
        ] = None,
        lora: Annotated[
            int | None,
            Range(0),
            "rank of adapters that are trained instead of a given policy's weights; 0: no adapters; none: the preset's",
        ] = None,
        precision: Annotated[
            Literal["auto", "float32", "bfloat16"],
            "of computations with given models; trained parameters stay in float32; auto: the preset's, float32 in mini",
        ] = "auto",
        preset: Annotated[
            Literal["mini", "smollm2", "gpt2", "paper"],
            "defaults of the other options: small models made here, or real ones",
        ] = "mini",
        instance: Annotated[
            int,
            Range(0),
            "number of the instance; each has its own splits, models made here, and reviews of the embedded corpus",
        ] = 0,
        label: Annotated[
            str,
            "the rewarded class of a given classifier, by name or number; auto: the only one, positive or pos, or LABEL_1 of two",
        ] = AUTO,
        activation: Annotated[
            Activation,
            "of a given classifier's outputs; auto: none for one output or regression, sigmoid for multi-label, else softmax",
        ] = AUTO,
        scored: Annotated[
            Literal["text", "continuation"], "what reward=features reads: prompt and continuation, or the latter alone"
        ] = "text",
    ):
        chosen = PRESETS[preset]
        policy = chosen.policy if policy == "auto" else policy
        # The preset's adapters and precision apply only to given models.
        small = policy == self.made["policy"] or is_scratch(policy)
        if reward == "auto":
            reward = self.made["reward"] if small else chosen.reward
        super().__init__(
            chosen.kl if kl is None else kl,
            policy,
            reward,
            lora=(0 if small else chosen.lora) if lora is None else lora,
            precision=("float32" if small else chosen.precision) if precision == "auto" else precision,
            instance=instance,
            corpus=chosen.corpus if corpus == "auto" else corpus,
            size=chosen.size if size == "auto" else size,
            checkpointing=chosen.checkpointing if checkpointing is None else checkpointing,
            preset=preset,
            label=label,
            activation=activation,
            scored=scored,
        )
        for name, default in (("label", AUTO), ("activation", AUTO), ("scored", "text")):
            if self.options[name] == default:
                del self.options[name]  # it is there only if given, because older runs don't have it
        if self.head and (self.is_made("reward") or self.reward_reads):
            given = " and ".join(f"{name}={value}" for name, value in self.head.items())
            raise InputError(f"imdb: {given} is for a given classifier; leave it out, or give reward=")
        if "scored" in self.options and not self.by_features:
            raise InputError(f"imdb: scored={scored} is for reward=features; leave it out, or give that reward")
        self.notices: list[str] = []

    @property
    def by_features(self) -> bool:
        """Whether the reward is a head on the frozen policy's features."""
        return bool(self.option("reward") == "features")

    def is_made(self, part: str) -> bool:
        return super().is_made(part) or (part == "reward" and self.by_features)

    # --- once a run -------------------------------------------------------------------------------------------

    def requirements(self) -> list[str]:
        return PRESETS[self.options["preset"]].requirements(self.options, SIZES.get(self.options["size"]))

    def prepare(self, device: torch.device, log: Log, strict: bool = False) -> None:
        given = self.given_parts()  # first, so that a misspelt name is refused at once
        corpus = self._read_corpus(log, strict)
        if corpus.reading:
            log(corpus.reading)
        if self.options["size"] == "auto":
            self.options["size"] = "mini" if corpus.name == EMBEDDED else "small"
        self._fit()
        # Corpora with the same texts may differ in films and official split, and therefore in our splits.
        facts = {"version": self.version, "corpus": [corpus.name, corpus.digest], "size": asdict(self.size)}
        facts |= (
            {"splits": corpus.split_digest} if corpus.name != EMBEDDED else {}
        )  # whose films are determined by its texts
        facts |= {"instance": self.seed} if self.seed else {}
        facts |= self.head
        facts |= {"reward": "features", "scored": self.options.get("scored", "text")} if self.by_features else {}
        # Models made here don't depend on a reward function, so editing it doesn't retrain them.
        facts |= {
            part: "function" if part == "reward" and self.reward_reads else one.digest for part, one in given.items()
        }
        folder = cached_folder("imdb", facts, lambda folder: self._build(folder, device, log, corpus), log)
        words = [f"corpus={corpus.name}:{corpus.digest[:8]}"]
        words += [f"scored={self.options['scored']}"] if "scored" in self.options else []
        self.set_prepared(folder, words, given, f"scratch-{self.options['size']}")

    @property
    def size(self) -> Size:
        return SIZES[self.options["size"]]

    def _fit(self) -> None:
        """Apply the size's settings."""
        self.longest_prompt, self.horizon, self.default_steps = self.size.prompt, self.size.horizon, self.size.steps

    def _restore(self) -> None:
        super()._restore()
        self._fit()
        preset = PRESETS[self.options["preset"]]
        self.default_batch = preset.batch
        if self.options["lora"]:
            self.learning_rate = preset.learning_rate or ADAPTERS_LEARNING_RATE

    def _read_corpus(self, log: Log, strict: bool) -> Corpus:
        """The requested corpus; `auto` may fall back to the embedded one, which `options` then names."""
        wanted = self.options["corpus"]
        if wanted in ("auto", "hub"):
            try:
                corpus = hub_corpus()
                self.options["corpus"] = "hub"
                return corpus
            except HubUnreachable as reason:
                if wanted == "hub" or strict:
                    raise
                notice = f"corpus=auto: {reason}. Running on the EMBEDDED corpus instead: synthetic reviews, not IMDB."
                self.notices.append(notice)
                log(notice)
                self.options["corpus"] = wanted = "embedded"
        return embedded_corpus(self.seed) if wanted == "embedded" else read_corpus(wanted)

    def _build(self, folder: Path, device: torch.device, log: Log, corpus: Corpus) -> None:  # type: ignore[override]
        """Make vocabulary, policy and reward, unless they are given, and the judge, and choose the prompts."""
        size, window = self.size, self.window
        if self.is_made("policy") and (took := MADE_HERE.get(self.options["size"])):
            which = f", instance {self.options['instance']}" if self.options["instance"] else ""
            log(f"preset {self.options['preset']}{which}: models are trained here, once, and cached; measured: {took}")
        parts = split_corpus(corpus, self.seed)
        policy, vocabulary = (None, None) if self.is_made("policy") else self.load_policy()
        if vocabulary is None:
            learned = np.concatenate([parts[name] for name in _READ])
            log(f"training a vocabulary on {len(learned):,} reviews")
            vocabulary = train_vocabulary([corpus.texts[i] for i in learned], size.vocabulary)
            vocabulary.save(folder / "tokenizer.json")
        # Before any training, because it may be refused.
        reward = None if self.is_made("reward") else self.given_reward(vocabulary, size.prompt)
        ids = vocabulary.encode(corpus.texts)
        parts = {name: rows[[len(ids[i]) >= window for i in rows]] for name, rows in parts.items()}
        prompts = choose_prompts(ids, parts, size)
        save_file(prompts, folder / "prompts.safetensors")

        torch.manual_seed(self.seed)  # for initial weights, which alone use the global generator
        shape = self._shape(vocabulary)
        report: dict[str, Any] = {"vocabulary": len(vocabulary)}
        if policy is None:
            policy, text = ScratchPolicy(*shape).to(device), token_rows([ids[i] for name in _READ for i in parts[name]])
            report |= pretrained(policy, text, window, size.policy_steps, self.seed, log)
            save_file(policy.state_dict(), folder / "policy.safetensors")
        else:
            report["policy_parameters"] = parameters_of(policy)
        policy.eval().to(device)
        labels = torch.from_numpy(corpus.labels.astype(np.int64))
        if reward is None:
            rows = parts["reward"][: LABELLED if self.by_features else None]
            reward = (self._feature_reward(policy) if self.by_features else ScratchReward(*shape)).to(device)
            text = token_rows([ids[i] for i in rows])
            build_reward(folder, reward, text, labels[rows], window, size.reward_steps, log, self.seed)

        judged = parts["validation"][: JUDGED if self.by_features else None]
        held_out, truth = torch.tensor([ids[i][:window] for i in judged], device=device), labels[judged]
        report["reviews"] = {name: len(rows) for name, rows in parts.items()}
        report["prompts"] = {name: len(rows) for name, rows in prompts.items()}
        if is_probability(reward):
            report["reward_accuracy_on_openings"] = accuracy(reward.to(device), held_out, truth)
        openings = vocabulary.decode(held_out.tolist())
        if corpus.name == EMBEDDED:
            gold = np.array([grammar.sentiment(text) for text in openings])
        else:
            log(f"training the gold judge on {len(parts['judge']):,} other reviews")
            judge = train_judge(*judged_windows(vocabulary, ids, parts["judge"], labels, window, self.seed))
            judge.save(folder / "judge.safetensors")
            gold = judge(openings)
        report["judge_accuracy_on_openings"] = float(((gold > 0.5) == truth.numpy()).mean())
        write_report(folder, report)

    # --- in every process -------------------------------------------------------------------------------------

    def _shape(self, vocabulary: Any) -> tuple[int, int, int, int, int]:
        """The arguments of a model made here."""
        return len(vocabulary), self.size.width, self.size.layers, self.size.heads, self.window

    def load(self, device: torch.device) -> None:
        super().load(device)
        self.judge = None if self.options["corpus"] == "embedded" else load_judge(self._made_file("judge"))

    def _made_file(self, part: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{part}.safetensors"

    def load_policy(self) -> tuple[Any, Any]:
        if not self.is_made("policy"):
            return super().load_policy()
        vocabulary = load_vocabulary(self._made_file("policy").with_name("tokenizer.json"))
        return with_weights(ScratchPolicy(*self._shape(vocabulary)), self._made_file("policy")), vocabulary

    def _feature_reward(self, policy: Any) -> FeatureReward:
        return FeatureReward(policy, self.horizon if "scored" in self.options else None)

    def make_reward(self) -> Any:
        if self.by_features:
            reward = with_weights(self._feature_reward(self.reference), self._made_file("reward"))
            return reward.to(self.prompts["train"].device)  # where the reference is
        return with_weights(ScratchReward(*self._shape(self.vocabulary)), self._made_file("reward"))

    def prompt_rows(self) -> Mapping[str, Sequence[Sequence[int]]]:
        return {split: prompts.tolist() for split, prompts in load_file(self._made_file("prompts")).items()}

    def gold_rewards(self, texts: list[str]) -> Sequence[float]:
        return self.judge(texts).tolist() if self.judge else [grammar.sentiment(text) for text in texts]

    def tuned(self, estimator: str) -> Mapping[str, Any] | None:
        if any(self.option(part) != made for part, made in self.made.items()):
            return None  # rates were tuned on models made here
        recorded = json.loads((Path(__file__).parent / "data" / "imdb_tuned.json").read_text(encoding="utf-8"))
        corpus = "embedded" if self.options["corpus"] == "embedded" else "real"
        stored = recorded.get(corpus, {})
        own = stored.get("estimators", {}).get(estimator)
        return None if own is None else tuned_facts(stored) | own


def tuned_facts(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a tuning record that all estimators share: setting, steps, trials in words, protocol."""
    protocol = stored["protocol"]
    facts = {name: protocol[name] for name in ("setting", "steps", "grid", "seeds")}
    return facts | {"trials": trials_in_words(len(protocol["grid"]), len(parse_seeds(protocol["seeds"])))}


def embedded_corpus(seed: int = SPLIT_SEED) -> Corpus:
    """Generated reviews; the parser of their grammar is the gold judge."""
    reviews = grammar.generate_reviews(12_000, seed)
    labels = np.array([review.label for review in reviews], dtype=np.int8)
    return Corpus(EMBEDDED, [review.text for review in reviews], labels, [review.film for review in reviews])


def choose_prompts(ids: list[list[int]], parts: Mapping[str, np.ndarray], size: Size) -> dict[str, Tensor]:
    """Openings (prompts, P) for train, validation and test, without duplicates within or between splits."""
    chosen: dict[str, Tensor] = {}
    seen: set[tuple[int, ...]] = set()
    for split in ("test", "validation", "train"):
        prompts: list[tuple[int, ...]] = []
        for row in parts[split]:
            opening = tuple(ids[row][: size.prompt])
            if opening not in seen and len(prompts) < size.prompts:
                seen.add(opening)
                prompts.append(opening)
        if len(prompts) < 32:
            raise InputError(
                f"the corpus gives only {counted(len(prompts), f'{split} prompt')} of reviews with at least "
                f"{size.prompt + size.horizon} tokens, 32 are needed; use a larger corpus"
            )
        chosen[split] = torch.tensor(prompts)
    return chosen


def judged_windows(
    vocabulary: Any, ids: list[list[int]], rows: np.ndarray, labels: Tensor, window: int, seed: int
) -> tuple[list[str], np.ndarray]:
    """Texts of the length that will be judged, four windows from each review, with the review's label."""
    texts = token_rows([ids[i] for i in rows])
    index = torch.arange(len(rows)).repeat(4)
    windows = texts.windows(index, window, torch.Generator().manual_seed(seed))
    return vocabulary.decode(windows.tolist()), labels[rows][index].numpy().astype(np.int8)
