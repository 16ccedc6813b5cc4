"""Plots of simulations as PNG and SVG: slots, states of processes, queues, latencies, policies side by side.

`llmos simulate --plot` draws them. They need matplotlib, and never a display.
"""
