"""Training, evaluation, voting, metrics and checkpoints."""
