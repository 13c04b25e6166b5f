"""`python -m glmserve` is `glmserve`."""

from glmserve.cli.main import main

main()
