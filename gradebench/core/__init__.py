"""What an author's page imports: problem, estimator, task, sampling, options, errors."""
