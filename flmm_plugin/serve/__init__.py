"""An interactive page for one model: chat, masks of words, words of places, attention. Started by ``flmm serve``."""
