"""The pure core: values in, values out. No event loop, clock, log or metric; time is an argument."""
