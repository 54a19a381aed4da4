"""What the server does, apart from the form in which it is asked."""
