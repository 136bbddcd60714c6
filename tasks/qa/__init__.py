"""The stock question-answering tasks of the paper's tables."""
