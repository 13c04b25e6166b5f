"""`glmserve bench throughput` and `latency`: the engine alone, timed, beside what this chip could do at best.

A process of its own (`python -m glmserve.offline_bench`), since the command line never loads torch.
"""
