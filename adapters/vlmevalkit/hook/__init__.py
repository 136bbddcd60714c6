"""A folder for ``PYTHONPATH``: with it, any program that imports VLMEvalKit finds this package's models and data sets.

Opt-in: ``PYTHONPATH=$(flmm-vlmeval hook) python run.py ...``, or ``flmm-vlmeval exec python run.py ...``.
"""
