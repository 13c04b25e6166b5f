"""What the model families are built of."""
