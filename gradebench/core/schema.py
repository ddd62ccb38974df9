"""Columns and units of the tables that a run writes."""

# fmt: off
METRICS_COLUMNS = [
    "run_id", "cell_id", "task", "setting", "estimator", "estimator_params", "estimator_source", "seed", "phase",
    "split", "step", "metric", "value", "unit", "status",
]
TESTS_COLUMNS = [
    "task", "setting", "metric", "split", "estimator_a", "estimator_b", "n_pairs", "mean_difference", "ci_low",
    "ci_high", "effect_size", "test", "p_value", "p_holm", "smallest_attainable_p", "verdict", "family",
]
LEADERBOARD_COLUMNS = [
    "rank", "tier", "letters", "estimator", "same_as", "task", "setting", "steps", "ranked_by", "n_seeds", "status",
    "test_objective_mean", "test_objective_ci_low", "test_objective_ci_high", "test_reward_mean", "test_reward_ci_low",
    "test_reward_ci_high", "test_gold_reward_mean", "generalization_gap", "gold_gap", "kl_mean", "gradient_mse_relative",
    "gradient_mse_relative_ci_low", "gradient_mse_relative_ci_high", "gradient_direction_error",
    "gradient_direction_error_ci_low", "gradient_direction_error_ci_high", "gradient_variance",
    "gradient_variance_relative", "gradient_variance_relative_ci_low", "gradient_variance_relative_ci_high",
    "gradient_bias_squared", "gradient_bias_squared_ci_low", "gradient_bias_squared_ci_high", "gradient_cosine",
    "gradient_cosine_ci_low", "gradient_cosine_ci_high", "seconds_per_step", "peak_memory_bytes", "p_vs_best_holm",
    "p_vs_baseline_holm", "verdict", "updates_per_step", "clipped_updates", "clip_factor", "clipped_tokens", "learning_rate", "rate_source",
]
PROBES_COLUMNS = [
    "run_id", "cell_id", "task", "setting", "estimator", "estimator_params", "estimator_source", "seed", "along",
    "step", "group", "samples", "draws", "metric", "value", "ci_low", "ci_high", "unit",
]
# A row for each training step, with a number in a column: as rows of one value each, as in the metrics, a run of 350 cells and
# 320 steps would have 700,000 more rows there, ten times as many as all others. Columns of `Estimate.info` follow.
TRAINING_PLACE = ["run_id", "cell_id", "task", "setting", "estimator", "seed", "status", "step"]
TRAINING_UNITS = {
    "reward": "1", "kl": "nats/sequence", "entropy": "nats/sequence", "gradient_norm": "1/theta", "clip_factor": "1",
    "clipped_updates": "1",
}
TRAINING_COLUMNS = [*TRAINING_PLACE, *TRAINING_UNITS]
PROBES_NUMBERS = ("seed", "step", "samples", "draws", "value", "ci_low", "ci_high")
# The objective has no unit, so its gradient has that of 1/theta.
METRIC_UNITS = {
    "objective": "1", "reward": "1", "gold_reward": "1", "kl": "nats/sequence", "entropy": "nats/token", "distinct_2": "1",
    "reference_nll": "nats/token", "gradient_variance": "1/theta^2", "gradient_variance_relative": "1",
    "gradient_bias_squared": "1/theta^2", "gradient_cosine": "1", "gradient_snr": "1",
    "gradient_norm_squared": "1/theta^2", "gradient_reference_dot": "1/theta^2",
    "gradient_reference_norm_squared": "1/theta^2", "gradient_bias_relative": "1", "gradient_mse": "1/theta^2",
    "gradient_mse_relative": "1", "gradient_direction_error": "1", "gradient_variance_relative_own": "1",
    "info_clipped_tokens": "1",
    "gradient_variance_sampling": "1/theta^2", "gradient_variance_prompts": "1/theta^2",
    "gradient_variance_by_batch": "1/theta^2", "gradient_variance_slope": "1",
    "gradient_variance_times_seconds": "s/theta^2", "gradient_variance_times_reward_calls": "calls/theta^2",
    "gradient_variance_times_tokens_sampled": "tokens/theta^2",
    "gradient_variance_times_forward_passes": "passes/theta^2",
    "gradient_variance_times_backward_passes": "passes/theta^2", "cost_seconds": "s", "cost_reward_calls": "calls",
    "cost_tokens_sampled": "tokens", "cost_forward_passes": "passes", "cost_backward_passes": "passes",
    "seconds_per_step": "s", "seconds": "s", "updates": "updates", "clipped_updates": "1", "clip_factor": "1",
    "reward_calls": "calls",
    "tokens_sampled": "tokens", "forward_passes": "passes", "backward_passes": "passes",
    "peak_memory_bytes": "bytes", "updates_refused": "updates", "own_updates_refused": "updates",
}
# fmt: on
