"""Files of weights: published checkpoints in, adapter files in and out."""
