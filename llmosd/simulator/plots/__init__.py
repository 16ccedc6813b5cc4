"""Plots of simulations as PNG and SVG: slots, states of processes, queues, latencies, policies side by side.

Drawn by `llmos simulate --plot`. They need matplotlib, and never a display.
"""
