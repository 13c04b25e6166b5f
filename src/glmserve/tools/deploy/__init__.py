"""`glmserve deploy`: one commented file that keeps a server running.  It writes that file and changes nothing else.

A target is one template in `templates/` and one function in `steps.py`.
"""
