"""The variational autoencoder of digits against loops over all codes, in float64."""

import itertools
import math

import pytest
import torch
from torch.nn import functional

from gradebench import Ledger, score
from gradebench.core.sampling import generator
from gradebench.tasks.digits import SPLITS, Decoder, DigitsVae, Encoder, LatentProblem, binary_digits

CPU = torch.device("cpu")


def loaded(**options):
    task = DigitsVae(**options)
    task.prepare(CPU, log=lambda message: None)
    task.load(CPU)
    return task


@pytest.fixture(scope="module")
def task():
    return loaded()


def small_problem(latents=2, categories=3, images=4):
    """Random weights of order one, so that posterior and prior differ, in float64."""
    rng = generator("cpu", "weights")
    shape = 5, 4, latents, categories
    encoder, decoder = Encoder(*shape).double(), Decoder(*shape).double()
    with torch.no_grad():
        for p in [*encoder.parameters(), *decoder.parameters()]:
            p.copy_(torch.randn(p.shape, generator=rng))
    return LatentProblem(encoder, decoder, torch.randint(2, (images, 5), generator=rng).double(), latents, categories)


@pytest.fixture
def problem():
    return small_problem()


def every_code(problem):
    """All outcomes in every context (V^T, B, T)."""
    return problem.support().unsqueeze(1).expand(-1, problem.contexts, -1)


def likelihood(problem, image, code):
    """p(x|z) as a product over pixels."""
    one_hots = functional.one_hot(torch.tensor([code]), problem.categories).double()
    p = problem.decoder(one_hots)[0].sigmoid()
    return torch.where(image == 1, p, 1 - p).prod()


def posterior(problem, image, code):
    """q(z|x) as a product over latents."""
    q = problem.encoder(image.unsqueeze(0))[0][0].softmax(-1)
    return torch.stack([q[t, k] for t, k in enumerate(code)]).prod()


def elbo(problem):
    """The ELBO (B,) in the form E log p(x, z) / q(z|x), which knows nothing of a divergence: plain loops."""
    codes = list(itertools.product(range(problem.categories), repeat=problem.horizon))
    rows = []
    for image in problem.images:
        total = image.new_zeros(())
        for code in codes:
            q = posterior(problem, image, code)
            total = total + q * (likelihood(problem, image, code) / len(codes) / q).log()
        rows.append(total)
    return torch.stack(rows)


# --- the objective


def test_the_expected_reward_is_the_elbo(problem):
    z = every_code(problem)
    expected = (problem.log_prob(z).sum(-1).exp() * problem.reward(z)).sum(0)
    torch.testing.assert_close(expected, elbo(problem), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_log_evidence_is_the_elbo_plus_the_divergence_to_the_true_posterior_and_so_never_below(problem):
    codes = list(itertools.product(range(3), repeat=2))
    evidence, bound = problem.log_evidence(), elbo(problem)
    for i, image in enumerate(problem.images):
        joint = torch.stack([likelihood(problem, image, code) / 9 for code in codes])
        q = torch.stack([posterior(problem, image, code) for code in codes])
        gap = (q * (q.log() - (joint / joint.sum()).log())).sum()
        assert float(evidence[i]) == pytest.approx(float(joint.sum().log()), rel=1e-12)
        assert float(evidence[i] - bound[i]) == pytest.approx(float(gap), rel=1e-9)
        assert gap > 1e-2


def test_exact_gradient_equals_finite_differences_of_the_elbo(problem):
    step, gradient = 1e-5, problem.exact_gradient()
    for p, g in zip(problem.params, gradient, strict=True):
        for i in range(p.numel()):
            delta = [torch.zeros_like(q) for q in problem.params]
            next(d for d, q in zip(delta, problem.params, strict=True) if q is p).view(-1)[i] = step
            with problem.shifted(delta), torch.no_grad():
                above = elbo(problem).mean()
            with problem.shifted([-d for d in delta]), torch.no_grad():
                below = elbo(problem).mean()
            assert float(g.flatten()[i]) == pytest.approx(float(above - below) / (2 * step), rel=1e-5, abs=1e-9)


def test_a_score_function_gradient_without_that_of_the_reward_would_be_wrong(problem):
    z = every_code(problem)
    exact = torch.cat([g.flatten() for g in problem.exact_gradient()])
    probability = problem.log_prob(z).sum(-1).exp().detach()
    reward = problem.reward(z)
    # weighted by their probability, all outcomes together are the mean of the estimate
    whole = (probability * (reward.detach() * problem.log_prob(z).sum(-1) + reward)).sum() / problem.contexts
    torch.testing.assert_close(torch.cat([g.flatten() for g in problem.grad(whole)]), exact, rtol=1e-9, atol=1e-12)
    part = (probability * (reward.detach() * problem.log_prob(z).sum(-1))).sum() / problem.contexts
    wrong = torch.cat([g.flatten() for g in problem.grad(part)])
    assert (wrong - exact).norm() > 0.1 * exact.norm()


def test_the_rewards_own_gradient_is_the_decoders_likelihood_and_the_encoders_penalty(problem):
    z = problem.sample(3, generator("cpu", "z"))
    gradient = dict(zip(problem.parameter_names, problem.grad(problem.reward(z).sum()), strict=True))
    one_hots = functional.one_hot(z, 3).double()
    likelihoods = problem.grad(problem.log_likelihood(one_hots).sum())
    penalties = problem.grad(-3 * problem.prior_divergence().sum())
    for name, fit, penalty in zip(problem.parameter_names, likelihoods, penalties, strict=True):
        torch.testing.assert_close(gradient[name], fit if name.startswith("decoder") else penalty)
        assert gradient[name].abs().max() > 1e-3
    assert "fixed_reward" not in problem.offers


def test_reward_of_ids_equals_soft_reward_of_their_one_hots(problem):
    z = every_code(problem)
    assert torch.equal(problem.reward(z), problem.soft_reward(functional.one_hot(z, 3).double()))


def test_soft_reward_is_differentiable_in_the_relaxed_code(problem):
    y = torch.rand(2, 4, 2, 3, dtype=torch.float64, generator=generator("cpu", "y")).requires_grad_()
    assert torch.autograd.gradcheck(problem.soft_reward, (y,))


def test_the_divergence_is_zero_for_a_uniform_posterior_and_largest_for_a_certain_one(problem):
    output = problem.encoder.output
    with torch.no_grad():
        output.weight.zero_()
        output.bias.zero_()
    torch.testing.assert_close(problem.prior_divergence(), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    with torch.no_grad():
        output.bias.view(2, 3)[:, 0] = 50
    torch.testing.assert_close(problem.prior_divergence(), torch.full((4,), 2 * math.log(3), dtype=torch.float64))


# --- the distribution


def test_samples_have_the_probabilities_of_the_posterior_in_every_context(problem):
    with torch.no_grad():
        for p in problem.encoder.parameters():
            p.mul_(0.5)  # so that no outcome is too rare to count
    n = 5000
    z = problem.sample(n, generator("cpu", "draws"))
    assert z.shape == (n, 4, 2)
    counts = functional.one_hot(z @ torch.tensor([3, 1]), 9).sum(0).double()  # (B, V^T)
    expected = n * problem.log_prob(every_code(problem)).sum(-1).exp().T.detach()
    assert expected.min() > 5  # where the statistic is chi-square to good accuracy
    statistic = float(((counts - expected).square() / expected).sum())
    assert statistic < 85  # of 4 * 8 degrees of freedom: alpha 1e-6, and the seed is fixed


def test_relax_is_called_once_a_latent_in_order_with_the_encoders_logits(problem):
    seen = []

    def relax(logits):
        seen.append(logits)
        return logits.softmax(-1)

    y = problem.rollout(relax, 5)
    logits = problem.encoder(problem.images)[0]
    assert y.shape == (5, 4, 2, 3)
    assert len(seen) == 2
    for t in range(2):
        assert torch.equal(seen[t], logits[:, t].expand(5, 4, 3))
        assert torch.equal(y[:, :, t], seen[t].softmax(-1))


def test_features_are_the_encoders_hidden_layer_at_every_position_without_a_graph(problem):
    z = problem.sample(3, generator("cpu", 0))
    features = problem.features(z)
    assert features.shape == (3, 4, 2, problem.feature_size)
    assert not features.requires_grad
    assert torch.equal(features[2, :, 1], problem.encoder(problem.images)[1])


def test_a_part_of_the_contexts_answers_for_its_images(problem):
    z, index = problem.sample(3, generator("cpu", 0)), torch.tensor([3, 1])
    part = problem.select(index)
    torch.testing.assert_close(part.reward(z[:, index]), problem.reward(z)[:, index])
    torch.testing.assert_close(part.log_prob(z[:, index]), problem.log_prob(z)[:, index])
    assert part.ledger is problem.ledger


def test_offers_say_what_can_be_done():
    assert small_problem().offers == {"soft_reward", "independent", "support", "exact"}
    assert small_problem(latents=12, categories=2).offers == {
        "soft_reward",
        "independent",
        "support",
        "exact",
        "binary",
    }
    many = small_problem(latents=13, categories=2)
    assert many.offers == {"soft_reward", "independent", "binary"}
    with pytest.raises(NotImplementedError, match="enumerated"):
        many.support()


def test_ledger_counts_draws_rewards_and_passes(problem):
    problem.ledger = ledger = Ledger()
    z = problem.sample(3, generator("cpu", 0))
    assert ledger == Ledger(tokens_sampled=24, forward_passes=1)
    reward = problem.reward(z)
    assert ledger == Ledger(tokens_sampled=24, forward_passes=1, reward_calls=12)
    problem.grad(score(problem, z, reward, reward))
    assert ledger == Ledger(tokens_sampled=24, forward_passes=2, reward_calls=12, backward_passes=1)
    problem.soft_reward(problem.rollout(lambda logits: logits.softmax(-1), 2))
    assert ledger == Ledger(tokens_sampled=40, forward_passes=3, reward_calls=20, backward_passes=1)


# --- the task


def test_splits_are_disjoint_and_hold_all_images_in_black_and_white(task):
    rows = torch.cat(list(task.rows.values()))
    assert sorted(rows.tolist()) == list(range(1750))
    assert len(torch.cat(list(task.images.values())).unique(dim=0)) == 1750  # none twice
    assert {split: len(images) for split, images in task.images.items()} == dict(task.sizes) == SPLITS
    digits = binary_digits()
    for split, images in task.images.items():
        assert torch.equal(images, digits[task.rows[split]])
        assert set(images.unique().tolist()) == {0, 1}


def test_parameters_are_those_of_encoder_and_decoder_in_the_order_of_the_problems(task):
    problem = task.problem("train", torch.arange(3))
    assert len(task.params) == len(problem.params) == len(problem.parameter_names) == 8
    assert all(p is q for p, q in zip(task.params, problem.params, strict=True))
    named = {f"encoder.{name}": p for name, p in task.encoder.named_parameters()}
    named |= {f"decoder.{name}": p for name, p in task.decoder.named_parameters()}
    assert all(named[name] is p for name, p in zip(problem.parameter_names, problem.params, strict=True))


def test_every_load_starts_at_the_same_weights_and_leaves_the_global_generator_alone(task):
    torch.rand(1)  # so that its state is no fresh one
    before = torch.get_rng_state()
    again = loaded()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(task.params, again.params, strict=True))


def test_an_evaluation_is_exact_but_for_one_sample_an_image(task):
    metrics = task.evaluate("test", generator("cpu", "evaluation"))
    assert metrics == task.evaluate("test", generator("cpu", "evaluation"))
    other = task.evaluate("test", generator("cpu", "other"))
    assert {name for name in metrics if metrics[name] != other[name]} == {"reward"}
    assert metrics["kl"] == pytest.approx(4 * (math.log(8) - metrics["entropy"]), abs=1e-5)
    assert metrics["gold_reward"] > metrics["reward"] - 0.1  # the noise of 500 images is far less
    assert -64 * math.log(2) == pytest.approx(metrics["gold_reward"], abs=1.0)  # an untrained pixel is a fair coin


def test_the_likelihood_is_left_out_where_codes_are_too_many_to_sum_over():
    metrics = loaded(latents=13, categories=2).evaluate("validation", generator("cpu", 0))
    assert set(metrics) == {"reward", "kl", "entropy"}


def test_a_hundred_steps_along_the_exact_gradient_raise_the_elbo_of_held_out_images_beyond_that_of_no_latents():
    task = loaded(latents=2)
    before = task.evaluate("test", generator("cpu", 0))
    optimizer, data = torch.optim.Adam(task.params, lr=0.02), generator("cpu", "data")
    for _ in range(100):
        index = torch.randperm(SPLITS["train"], generator=data)[:32]
        for p, g in zip(task.params, task.problem("train", index).exact_gradient(), strict=True):
            p.grad = -g
        optimizer.step()
    after = task.evaluate("test", generator("cpu", 0))
    pixels, x = task.images["train"].mean(0).clamp(1e-3, 1 - 1e-3), task.images["test"]
    without_latents = float((x * pixels.log() + (1 - x) * (1 - pixels).log()).sum(-1).mean())
    assert before["reward"] < without_latents - 10
    assert without_latents + 1 < after["reward"] < after["gold_reward"]


def test_the_setting_names_every_option():
    assert loaded(latents=2, width=16).setting == "latents=2 categories=8 width=16"


def test_relaxed_tokens_may_be_made_together(problem):
    calls = []

    def relax(logits):
        calls.append(logits.shape)
        return logits.softmax(-1)

    one_by_one, together = (problem.rollout(relax, 5, together=together) for together in (False, True))
    torch.testing.assert_close(together, one_by_one)
    assert calls == [(5, 4, problem.categories)] * 2 + [(5, 8, problem.categories)]
