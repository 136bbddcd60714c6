"""Servers on this machine that play the real ones: a drive, a hub, Meta's and COCO's file servers.

A forward proxy stands between a client and everything else. Product code asks the real addresses; an environment
variable, ``HTTPS_PROXY``, leads it here, and another, ``SSL_CERT_FILE``, has it trust certificates made for the run.
"""
