"""The functions that `ddimctl` exports: arguments checked, errors in Python's words, then the
layers below. Each is imported when it is first used.
"""
