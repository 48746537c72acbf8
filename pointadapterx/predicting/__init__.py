"""What ``predict`` does with files: answers, the files that they go into, and how files are named."""
