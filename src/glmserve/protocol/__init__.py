"""The door between the two wings: what the HTTP side and the GPU side say to each other.  No torch, no fastapi."""
