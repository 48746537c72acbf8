"""What is asked of a backbone's features: targets, head, loss, metrics, answers."""
