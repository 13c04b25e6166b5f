"""Model families.  `spec` modules are plain facts and may be read by both wings; `model` modules need torch."""
