"""An OpenAI-compatible server: requests, one worker with one model, replies."""
