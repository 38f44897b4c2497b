"""An OpenAI-compatible server over the session of a runtime plugin."""
