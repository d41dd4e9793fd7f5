"""What `streamer demo` and the tests bring along: a broker that needs nothing installed, and events to put into it."""
