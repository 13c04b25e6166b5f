"""`glmserve slow`: which requests took long, and why, from the log or from a running server."""
