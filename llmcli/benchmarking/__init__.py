"""Measuring speed: timing, statistics, the machine's own ceilings, and what to run against them.

Knows models, operators and clocks; knows no terminal. Times are nanoseconds, memory is bytes, rates are per second.
"""
