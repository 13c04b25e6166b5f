"""`glmserve bench ladder`: the same load on six ways to serve a model, from one request at a time to fp8, with a figure after each step."""
