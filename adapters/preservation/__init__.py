"""Prove that chat is what it is without the plugin: stock model and F-LMM, asked the same, compared bit by bit."""
