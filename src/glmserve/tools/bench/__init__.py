"""`glmserve bench serve`: loads a server over HTTP as many clients would, and says what they saw."""
