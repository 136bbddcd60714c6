"""MGM (Mini-Gemini) from its published repositories."""
