"""What upstream tried out."""
