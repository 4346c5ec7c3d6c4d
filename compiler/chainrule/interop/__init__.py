"""Other people's tools: what they expect, made of what is here."""
