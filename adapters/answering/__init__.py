"""Answer requests alike in every evaluation tool: arguments, requests, answers, failures. Knows none of the tools."""
