"""glmserve: an inference server for ChatGLM-6B and the GLM family that keeps the GPU truly at work."""
