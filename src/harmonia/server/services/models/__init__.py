"""Models and where they are served."""
