"""Each op in one file: the fast path in Triton and, beside it, its plain torch twin.  Ops choose by the tensor's device."""
