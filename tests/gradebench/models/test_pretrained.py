"""Models of the hub as policies and rewards: one model however it is read, differentiable twice, or refused.

Long because one file tests one module.
"""

import json
import re
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from double_precision import in_float64
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from gradebench import InputError, SequenceProblem, generator, gumbel, harden, straight_through
from gradebench.estimators.control_variate import Rebar
from gradebench.estimators.relaxed import GradeSte
from gradebench.models.pretrained import PretrainedPolicy, load_policy, load_reward
from gradebench.models.trial import try_policy
from gradebench.models.vocabulary import train_vocabulary
from gradebench.storage.hub import locate_model

# The tests' folders are no packages to import from.
tiny_models = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "tiny_models.py")))

POLICIES = {
    "gpt2 tied": ("gpt2", {"tie_word_embeddings": True}),
    "gpt2 untied": ("gpt2", {"tie_word_embeddings": False}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama untied": ("llama", {"tie_word_embeddings": False}),
    "gemma2": ("gemma2", {}),
    "opt": ("opt", {}),
}
REWARDS = ("gpt2", "llama", "bert")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny_models.Folders(tmp_path_factory.mktemp("models"))


def policy_of(folders, name) -> PretrainedPolicy:
    family, options = POLICIES[name]
    return load_policy(str(folders(family, **options)))[0].double()


def tokens_of(kind, categories, shape=(2, 7)):
    rng = torch.Generator().manual_seed(1)
    if kind == "hard":
        return torch.randint(categories, shape, generator=rng)
    return (3 * torch.randn(*shape, categories, generator=rng, dtype=torch.float64)).softmax(-1)


def stepwise(policy, tokens):
    """Logits and features (N, L, ...) of one position at a time."""
    steps, cache = [], None
    for t in range(tokens.shape[1]):
        logits, features, cache = policy(policy.embed(tokens[:, t : t + 1]), cache)
        steps.append((logits, features))
    return tuple(torch.cat(parts, 1) for parts in zip(*steps, strict=True))


def problem_of(folders, name, reward="gpt2", beta=0.1, horizon=3):
    """Two prompts of three tokens, with a reference that differs from the policy."""
    policy, reference = policy_of(folders, name), policy_of(folders, name)
    _, vocabulary = load_policy(str(folders(POLICIES[name][0], **POLICIES[name][1])))
    scorer = load_reward(str(folders(reward, "classifier")), vocabulary).double().requires_grad_(False)
    with torch.no_grad():
        for p in reference.requires_grad_(False).parameters():
            p.mul_(0.9)
    prompts = tokens_of("hard", len(vocabulary), (2, 3))
    return SequenceProblem(policy, scorer, prompts, horizon, len(vocabulary), reference, beta)


# The policy


@pytest.mark.parametrize("kind", ["hard", "relaxed"])
@pytest.mark.parametrize("name", POLICIES)
def test_cached_steps_equal_the_parallel_pass(folders, name, kind):
    policy = policy_of(folders, name)
    tokens = tokens_of(kind, policy.categories)
    with in_float64():
        logits, features, _ = policy(policy.embed(tokens))
        step_logits, step_features = stepwise(policy, tokens)
    assert logits.shape == (2, 7, policy.categories)
    assert features.shape == (2, 7, policy.feature_size)
    torch.testing.assert_close(step_logits, logits, rtol=0, atol=1e-10)
    torch.testing.assert_close(step_features, features, rtol=0, atol=1e-10)
    assert logits.detach().std() > 0.5, "logits so flat that a wrong step would pass"


@pytest.mark.parametrize("name", POLICIES)
def test_relaxed_one_hots_are_embedded_as_their_ids(folders, name):
    policy = policy_of(folders, name)
    ids = tokens_of("hard", policy.categories)
    one_hots = functional.one_hot(ids, policy.categories).double()
    torch.testing.assert_close(policy.embed(one_hots), policy.embed(ids), rtol=0, atol=1e-12)
    with in_float64():
        by_ids = policy.model(input_ids=ids).logits[..., : policy.categories]
        torch.testing.assert_close(policy(policy.embed(ids))[0], by_ids, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["gpt2 untied", "llama untied", "gemma2"])
def test_cache_is_left_as_it_was(folders, name):
    policy = policy_of(folders, name)
    tokens = tokens_of("hard", policy.categories)
    with torch.no_grad():
        _, _, cache = policy(policy.embed(tokens[:, :5]))
        one, again = (policy(policy.embed(tokens[:, 5:6]), cache)[0] for _ in range(2))
    torch.testing.assert_close(again, one, rtol=0, atol=0)


def test_dropout_is_off(folders):
    policy, _ = load_policy(str(folders("gpt2", resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5)))
    embeddings = policy.embed(tokens_of("hard", policy.categories))
    torch.testing.assert_close(policy(embeddings)[0], policy(embeddings)[0], rtol=0, atol=0)


def test_row_of_the_padding_token_gets_its_gradient(folders):
    policy, _ = load_policy(str(folders("llama", tie_word_embeddings=False, pad_token_id=0)))
    assert policy.model.get_input_embeddings().padding_idx == 0
    policy(policy.embed(torch.tensor([[5, 0, 6]])))[0].square().sum().backward()
    assert policy.model.get_input_embeddings().weight.grad[0].abs().max() > 0


def plain_rollout(problem, rng, tau):
    """GRADE-STE's draws with every prefix read anew at each position: y (1, B, T, V)."""
    tokens = []
    for _ in range(problem.horizon):
        parts = [problem.policy.embed(problem.prompts), *(problem.policy.embed(y.unsqueeze(1)) for y in tokens)]
        logits = problem.policy(torch.cat(parts, 1))[0][:, -1].unsqueeze(0)
        soft = ((logits + gumbel(logits, rng)) / tau).softmax(-1)
        tokens.append(straight_through(harden(soft), soft)[0])
    return torch.stack(tokens, 1).unsqueeze(0)


@pytest.mark.parametrize("name", POLICIES)
def test_gradient_through_the_cache_equals_that_of_reading_every_prefix_anew(folders, name):
    problem, plain = problem_of(folders, name), problem_of(folders, name)
    with in_float64():
        cached = GradeSte(tau=0.7).gradient(problem, generator("cpu", "draws")).grad
        value = plain.soft_reward(plain_rollout(plain, generator("cpu", "draws"), tau=0.7)).mean()
        exact = plain.grad(value)
    assert sum(float(g.abs().sum()) for g in exact) > 1e-3
    for ours, theirs in zip(cached, exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["gpt2 tied", "llama untied", "gemma2", "opt"])
def test_rebar_differentiates_twice_as_finite_differences_do(folders, name):
    problem = problem_of(folders, name)

    def own_loss(tau, eta):
        estimator = Rebar(tau=tau, eta=eta).double()
        with in_float64():
            return estimator, estimator.gradient(problem, generator("cpu", "draws")).own_loss

    estimator, loss = own_loss(0.8, 0.5)
    loss.backward()
    step = 1e-4
    by_eta = (own_loss(0.8, 0.5 + step)[1] - own_loss(0.8, 0.5 - step)[1]).item() / (2 * step)
    by_tau = (own_loss(0.8 + step, 0.5)[1] - own_loss(0.8 - step, 0.5)[1]).item() / (2 * step)
    assert by_eta == pytest.approx(estimator.eta.grad.item(), rel=1e-3)
    assert 0.8 * by_tau == pytest.approx(estimator.log_tau.grad.item(), rel=1e-3)  # d / d log tau = tau d / d tau


# The vocabulary


@pytest.mark.parametrize(("template", "prefix"), [("", []), ("<s> $A", [1]), ("<s> $A </s>", [1]), ("</s> $A", [])])
def test_text_begins_with_bos_where_the_tokenizer_adds_it_and_with_nothing_else(folders, template, prefix):
    _, vocabulary = load_policy(str(folders("gpt2", template=template)))
    text = "the plot is not very clever , but the cast is superb . what a film !"
    (ids,) = vocabulary.encode([text])
    assert ids[: len(prefix)] == prefix
    assert not {1, 2} & set(ids[len(prefix) :])
    assert vocabulary.decode([ids]) == [text], "spaces before punctuation are kept, special tokens aren't shown"


def test_tokenizer_wrapper_reads_what_the_library_reads(folders):
    folder = folders("gpt2", template="<s> $A")
    _, vocabulary = load_policy(str(folder))
    rows = vocabulary.encode(tiny_models.texts()[:3])
    assert rows == AutoTokenizer.from_pretrained(folder)(tiny_models.texts()[:3])["input_ids"]


# The reward


@pytest.mark.parametrize("labels", [{0: "NEGATIVE", 1: "POSITIVE"}, {0: "pos", 1: "neg"}, {0: "LABEL_0"}])
@pytest.mark.parametrize("family", REWARDS)
def test_reward_is_the_output_that_the_library_gives(folders, family, labels):
    folder = folders(family, "classifier", template="<s> $A </s>", id2label=labels, label2id={})
    _, vocabulary = load_policy(str(folders("gpt2", template="<s> $A")))
    reward = load_reward(str(folder), vocabulary)
    ids = torch.tensor([row[:9] for row in vocabulary.encode(tiny_models.texts()[:4])])
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():  # one text a call, since without a padding token the library takes no more
        whole = torch.cat([ids, torch.full((4, 1), 2)], 1)  # ids begin with <s>
        logits = torch.cat([model(input_ids=row.unsqueeze(0)).logits for row in whole])
        expected = logits[:, 0] if len(labels) == 1 else logits.softmax(-1)[:, reward.head.index]
        one_hots = functional.one_hot(ids, len(vocabulary)).float()
        for tokens in (ids, one_hots):
            torch.testing.assert_close(reward(reward.embed(tokens)), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.01


# What is refused


def without(name):
    return lambda folder: (folder / name).unlink()


def with_bin(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_short(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def of_unknown_type(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["OwnModel"], "auto_map": {"AutoConfig": "own.Config"}}
    (folder / "config.json").write_text(json.dumps(config))


def without_tokenizer(folder):
    for file in (*folder.glob("tokenizer*"), *folder.glob("special*")):
        file.unlink()


DEFECTS = {
    "gone": (shutil.rmtree, "no such folder"),
    "config": (without("config.json"), "incomplete, no config.json"),
    "weights": (without("model.safetensors"), "incomplete, no weights model.safetensors"),
    "pickle": (with_bin, "pytorch_model.bin"),
    "cut": (cut_short, "can't serve as a policy"),
    "unknown": (of_unknown_type, "--trust-remote-code"),
    "tokenizer": (without_tokenizer, "can't serve as a policy"),
}


def refusal_of(call, *arguments) -> str:
    with pytest.raises(InputError) as refusal:
        call(*arguments)
    message = str(refusal.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("defect", DEFECTS)
def test_defective_folder_is_refused_in_one_line(folders, tmp_path, capfd, defect):
    folder = tmp_path / "model"
    shutil.copytree(folders("gpt2"), folder)
    damage, fact = DEFECTS[defect]
    damage(folder)
    message = refusal_of(load_policy, str(folder))
    assert message.startswith(str(folder))
    assert fact in message
    assert capfd.readouterr() == ("", "")


def test_classifier_is_refused_as_a_policy_and_language_model_as_a_reward(folders):
    _, vocabulary = load_policy(str(folders("gpt2")))
    classifier = folders("gpt2", "classifier")
    assert "a GPT2ForSequenceClassification, not a causal language" in refusal_of(load_policy, str(classifier))
    assert "its weights lack score.weight" in refusal_of(load_reward, str(folders("gpt2")), vocabulary)


def test_bidirectional_language_model_is_refused_as_a_policy(folders):
    assert "isn't causal" in refusal_of(load_policy, str(folders("bert")))


def test_model_that_does_not_continue_from_its_cache_is_refused(folders, monkeypatch):
    monkeypatch.setattr("gradebench.models.pretrained.branch", lambda cache: None)
    assert "doesn't continue from its cache" in refusal_of(load_policy, str(folders("gpt2")))


def test_fused_attention_is_found_out(folders):
    policy, _ = load_policy(str(folders("llama")))
    try_policy(policy)
    policy.model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="derivative"):
        try_policy(policy)


def test_context_too_short_is_refused(folders):
    folder, context = str(folders("gpt2")), tiny_models.CONTEXT
    _, vocabulary = load_policy(folder, context)
    message = refusal_of(load_policy, folder, context + 1)
    assert re.search(rf"context of {context} tokens is shorter .*\({context + 1}", message)
    classifier = str(folders("gpt2", "classifier", template="<s> $A </s>"))
    load_reward(classifier, vocabulary, context - 2)
    assert "context of" in refusal_of(load_reward, classifier, vocabulary, context - 1)


@pytest.mark.parametrize("pretrained", [True, False])
def test_reward_over_another_vocabulary_is_refused_with_both_sizes(folders, pretrained):
    if pretrained:
        _, vocabulary = load_policy(str(folders("gpt2", trained=5)))
    else:
        vocabulary = train_vocabulary(tiny_models.texts()[:50], 1000)
    message = refusal_of(load_reward, str(folders("gpt2", "classifier")), vocabulary)
    assert re.search(rf"vocabulary \(320 tokens, .*the policy's \({len(vocabulary)} tokens\)", message)


def test_equal_sizes_with_other_ids_are_another_vocabulary(folders):
    _, vocabulary = load_policy(str(folders("gpt2")))
    other = vocabulary.tokenizer.get_vocab()
    other["<s>"], other["</s>"] = 2, 1
    swapped = SimpleNamespace(tokenizer=SimpleNamespace(get_vocab=lambda: other))
    message = refusal_of(load_reward, str(folders("gpt2", "classifier")), swapped)
    assert "(320 tokens, 2 of them other ones) isn't the policy's (320 tokens)" in message


def test_tokenizer_with_more_ids_than_the_model_embeds_is_refused(folders):
    folder = folders("gpt2", vocab_size=300)
    assert "320 ids and its model embeds 300" in refusal_of(load_policy, str(folder))


def test_model_loads_in_silence(folders, capfd):
    _, vocabulary = load_policy(str(folders("llama")))
    load_reward(str(folders("llama", "classifier")), vocabulary)
    assert capfd.readouterr() == ("", "")


# Half precision


@pytest.mark.parametrize("path", ["score", "soft reward"])
def test_half_precision_gives_nearly_the_gradient_of_single(folders, path):
    """bfloat16 has 8 bits: 0.4 % a number. The tokens are given, because other numbers would draw others."""
    found = []
    for half in (False, True):
        policy, vocabulary = load_policy(str(folders("llama")), half=half)
        assert {p.dtype for p in policy.parameters()} == {torch.float32}, "small updates would be lost"
        reward = load_reward(str(folders("llama", "classifier")), vocabulary, half=half).requires_grad_(False)
        reference = policy.frozen()
        for p in reference.parameters():
            p.mul_(0.9)
        assert {p.dtype for p in reference.parameters()} == {torch.bfloat16 if half else torch.float32}
        prompts = tokens_of("hard", 100, (8, 4))
        problem = SequenceProblem(policy, reward, prompts, 3, len(vocabulary), reference, 0.1)
        if path == "score":
            z = tokens_of("hard", 300, (1, 8, 3))
            found.append(problem.grad((problem.log_prob(z).sum(-1) * torch.arange(8.0)).mean()))
        else:
            y = functional.one_hot(tokens_of("hard", 300, (1, 8, 3)), len(vocabulary)).float()
            found.append(problem.grad(problem.soft_reward(y).mean()))
        assert {g.dtype for g in found[-1]} == {torch.float32}
    single, half = (torch.cat([g.flatten() for g in gradient]) for gradient in found)
    assert functional.cosine_similarity(single, half, 0) > 0.99
    assert float(half.norm() / single.norm()) == pytest.approx(1, abs=0.05)
    assert not torch.equal(single, half)


# Texts that end


def ended_texts(folders, family, template):
    """Token rows (4, 9) of which so many count, and the library's answer to each cut text."""
    folder = folders(family, "classifier", template=template)
    _, vocabulary = load_policy(str(folders("gpt2", template="<s> $A" if template.startswith("<s>") else "")))
    reward = load_reward(str(folder), vocabulary)
    ids = torch.tensor([row[:9] for row in vocabulary.encode(tiny_models.texts()[:4])])
    lengths = torch.tensor([9, 7, 4, 1 + len(vocabulary.prefix)])
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    tail = [2] if template.endswith("</s>") else []
    with torch.no_grad():
        rows = [row[:length].tolist() + tail for row, length in zip(ids, lengths.tolist(), strict=True)]
        logits = torch.cat([model(input_ids=torch.tensor([row])).logits for row in rows])
    keep = (torch.arange(9) < lengths[:, None]).float()
    return reward, ids, keep, logits.softmax(-1)[:, 1]


@pytest.mark.parametrize("template", ["<s> $A", "<s> $A </s>"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen", "gpt-neox", "bert"])
def test_reward_of_an_ended_text_is_that_of_the_text_cut_there(folders, family, template):
    reward, ids, keep, expected = ended_texts(folders, family, template)
    with torch.no_grad():
        torch.testing.assert_close(reward(reward.embed(ids), keep), expected, rtol=0, atol=1e-5)
        other = torch.where(keep > 0, ids, 7)
        torch.testing.assert_close(reward(reward.embed(other), keep), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.01


def test_decoder_mixes_the_scores_of_a_text_that_ends_gradually(folders):
    reward, ids, _, _ = ended_texts(folders, "llama", "<s> $A")
    assert reward.weighs
    keep = torch.tensor([[1.0] * 6 + [0.75, 0.25, 0.0]])
    cut = [reward(reward.embed(ids[:1, :length])) for length in (6, 7, 8)]
    expected = 0.25 * cut[0] + 0.5 * cut[1] + 0.25 * cut[2]
    torch.testing.assert_close(reward(reward.embed(ids[:1]), keep), expected, rtol=0, atol=1e-6)
    assert not load_reward(str(folders("bert", "classifier")), load_policy(str(folders("gpt2")))[1]).weighs


# A model's own code

OWN_CONFIG = "from transformers import LlamaConfig\n\n\nclass Config(LlamaConfig):\n    model_type = 'own'\n"
OWN_MODEL = (
    "from transformers import LlamaForCausalLM\n\nfrom .own_config import Config\n\n\n"
    "class Model(LlamaForCausalLM):\n    config_class = Config\n"
)


@pytest.fixture
def own_code(folders, tmp_path, monkeypatch):
    folder = tmp_path / "own"
    shutil.copytree(folders("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    named = {"AutoConfig": "own_config.Config", "AutoModelForCausalLM": "own_model.Model"}
    config |= {"model_type": "own", "architectures": ["Model"], "auto_map": named}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own_config.py").write_text(OWN_CONFIG)
    (folder / "own_model.py").write_text(OWN_MODEL + f"\n\nopen({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder, tmp_path / "ran"


def test_code_of_a_model_runs_only_for_who_trusts_it(own_code, monkeypatch):
    folder, ran = own_code
    assert "--trust-remote-code" in refusal_of(load_policy, str(folder))
    assert not ran.exists()
    monkeypatch.setenv("GRADEBENCH_TRUST_REMOTE_CODE", "1")
    policy, _ = load_policy(str(folder))
    assert type(policy.model).__name__ == "Model"
    assert ran.exists()


def test_trusted_code_is_part_of_the_models_digest(own_code, monkeypatch):
    folder, _ = own_code
    monkeypatch.setenv("GRADEBENCH_TRUST_REMOTE_CODE", "1")
    before = locate_model(str(folder)).digest
    (folder / "own_model.py").write_text(OWN_MODEL)
    assert locate_model(str(folder)).digest != before
