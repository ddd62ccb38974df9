"""The transformer against itself by another road (cache, relaxed tokens) and against PyTorch's own attention."""

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional

from gradebench.models.transformer import ScratchClassifier, ScratchPolicy, Transformer

VOCABULARY, WIDTH, LAYERS, HEADS, LENGTH = 5, 4, 2, 2, 6


def scattered(model, seed=0):
    rng = torch.Generator().manual_seed(seed)
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=rng, dtype=p.dtype))
    return model


@pytest.fixture(scope="module")
def policy():
    return scattered(ScratchPolicy(VOCABULARY, WIDTH, LAYERS, HEADS, LENGTH))


@pytest.fixture(scope="module")
def classifier():
    return scattered(ScratchClassifier(VOCABULARY, WIDTH, LAYERS, HEADS, LENGTH))


def tokens(kind, seed=1, batch=3):
    """(batch, LENGTH) ids, or as many relaxed one-hots."""
    rng = torch.Generator().manual_seed(seed)
    if kind == "hard":
        return torch.randint(VOCABULARY, (batch, LENGTH), generator=rng)
    return torch.randn(batch, LENGTH, VOCABULARY, generator=rng, dtype=torch.float64).softmax(-1)


def test_one_hots_are_embedded_as_their_ids(policy):
    ids = tokens("hard")
    assert torch.equal(policy.embed(functional.one_hot(ids, VOCABULARY).double()), policy.embed(ids))


@pytest.mark.parametrize("kind", ["hard", "relaxed"])
@pytest.mark.parametrize("position", range(1, LENGTH))
def test_a_policy_reads_the_past_and_only_the_past(policy, kind, position):
    before = tokens(kind)
    after = before.clone()
    after[:, position] = (before[:, position] + 1) % VOCABULARY if kind == "hard" else before[:, position].roll(1, -1)
    change = (policy(policy.embed(after))[0] - policy(policy.embed(before))[0]).abs().amax((0, 2))  # (T,)
    assert (change[:position] == 0).all()
    assert (change[position:] > 1e-6).all()


def test_a_classifier_reads_in_both_directions(classifier):
    before = tokens("hard")
    after = before.clone()
    after[:, -1] = (before[:, -1] + 1) % VOCABULARY
    change = classifier.features(classifier.embed(after))[0] - classifier.features(classifier.embed(before))[0]
    assert (change.abs().amax((0, 2)) > 1e-6).all()


@pytest.mark.parametrize("kind", ["hard", "relaxed"])
@pytest.mark.parametrize("pieces", [[1] * LENGTH, [2, 1, 1, 1, 1], [3, 3], [1, 4, 1]])
def test_continuing_from_a_cache_equals_one_parallel_pass(policy, kind, pieces):
    embeddings = policy.embed(tokens(kind))
    logits, features, _ = policy(embeddings)
    cache, parts = None, []
    for piece in embeddings.split(pieces, 1):
        *part, cache = policy(piece, cache)
        parts.append(part)
    for whole, by_pieces in zip((logits, features), zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(by_pieces, 1), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_equals_the_librarys(causal):
    model = scattered(Transformer(VOCABULARY, WIDTH, LAYERS, HEADS, LENGTH, causal))
    x = model.embed(tokens("hard"))
    found, _ = model.features(x)
    x = x + model.position
    for block in model.blocks:
        q, k, v = (
            part.view(len(x), LENGTH, HEADS, -1).transpose(1, 2)
            for part in block.query_key_value(block.attention_norm(x)).chunk(3, -1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
        x = x + block.attention_out(mixed)
        x = x + block.feed_forward(block.feed_forward_norm(x))
    torch.testing.assert_close(found, model.norm(x), rtol=0, atol=1e-12)


def test_logits_are_features_times_the_tied_embedding(policy):
    logits, features, _ = policy(policy.embed(tokens("relaxed")))
    torch.testing.assert_close(logits, torch.einsum("nld,vd->nlv", features, policy.token))


def test_a_classifier_is_the_sigmoid_of_the_mean_pooled_features(classifier):
    embeddings = classifier.embed(tokens("hard"))
    features, _ = classifier.features(embeddings)
    by_position = features @ classifier.head.weight[0] + classifier.head.bias
    expected = 1 / (1 + (-by_position.mean(1)).exp())
    torch.testing.assert_close(classifier(embeddings), expected)
    assert len(classifier(embeddings).unique()) == len(embeddings)


@pytest.mark.parametrize("kind", ["policy", "classifier"])
def test_second_derivatives_equal_finite_differences_of_the_gradient(kind, request):
    """In the relaxed tokens and all parameters at once: what a control variate differentiates to learn."""
    model = request.getfixturevalue(kind)
    names = [name for name, _ in model.named_parameters()]

    def output(y, *parameters):
        answer = functional_call(
            model, dict(zip(names, parameters, strict=True)), (y @ parameters[names.index("token")],)
        )
        return answer[0] if isinstance(answer, tuple) else answer

    inputs = [tokens("relaxed", batch=2).requires_grad_(), *(p.detach().requires_grad_() for p in model.parameters())]
    rng_state = torch.get_rng_state()
    torch.manual_seed(0)  # the check draws its directions from the global generator
    try:
        assert torch.autograd.gradcheck(output, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(output, inputs, fast_mode=True)
    finally:
        torch.set_rng_state(rng_state)
