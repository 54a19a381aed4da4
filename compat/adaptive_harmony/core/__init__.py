"""What training classes are built from."""
