"""The clock, named random streams, and the recorder."""
