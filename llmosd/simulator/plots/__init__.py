"""Plots of simulations as PNG and SVG: slots, states of processes, queues, latencies, policies side by side.

Asked by `llmos simulate --plot`. They need matplotlib, and no display.
"""
