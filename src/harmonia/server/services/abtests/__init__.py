"""Models against each other on real traffic."""
